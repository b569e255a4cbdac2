"""Windows over a series: which rows a model sees, which it should answer, and how both are scaled.

A window that starts at row s shows the model rows s .. s+context_length.  Its target is, for `target = "path"`, the
next `horizon` rows of the target columns, [horizon, channels]; for `target = "point"`, the value `horizon` rows ahead
of one target column, [1].  The windows of a split are those whose target rows all lie in the split; their context may
reach back into the split before it.  With first = max(0, split start - rows before the target) and last = split end -
context_length - horizon there are floor((last - first) / stride) + 1 of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from tsexport.errors import ConfigurationError, did_you_mean
from tsexport.preparation import Scaling, ShortWindows

TargetStyle = Literal["path", "point"]
SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
FRACTION_SLACK = 1e-9
"""Fractions such as 0.7 + 0.1 + 0.2 may sum to a little more than 1, and 0.29 * 100 rows to a little less than 29."""
SPLIT_FORMS = "either row ranges, for example train = [0, 8640], or fractions, for example train = 0.7"


@dataclass(frozen=True)
class Splits:
    """Rows of each split: all as ranges (start, stop) counted from 0, or all as fractions of the table, in order.

    Ranges may leave rows out, which are then ignored; they may not overlap.  A split may be missing.
    """

    train: tuple[int, int] | float | None = None
    validation: tuple[int, int] | float | None = None
    test: tuple[int, int] | float | None = None

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in SPLITS if getattr(self, name) is not None}
        if not given:
            raise ConfigurationError(f"split names no rows; allowed is {SPLIT_FORMS}.")
        ranges = {name: value for name, value in given.items() if isinstance(value, tuple)}
        if ranges and len(ranges) < len(given):
            raise ConfigurationError(f"split mixes row ranges and fractions; allowed is {SPLIT_FORMS}.")
        previous = 0
        for name, value in given.items():
            if isinstance(value, tuple):
                if not previous <= value[0] < value[1]:
                    raise ConfigurationError(
                        f"split {name} = [{value[0]}, {value[1]}] must begin at row {previous} or later, where the "
                        f"split before it ends, and end behind its beginning."
                    )
                previous = value[1]
            elif not 0 < value <= 1:
                raise ConfigurationError(f"split {name} = {value} must be a fraction above 0 and at most 1.")
        if not ranges and sum(given.values()) > 1 + FRACTION_SLACK:
            raise ConfigurationError(f"the fractions of split sum to {sum(given.values()):g}, which is more than 1.")

    @property
    def given(self) -> tuple[SplitName, ...]:
        return tuple(name for name in SPLITS if getattr(self, name) is not None)

    def rows(self, name: SplitName, row_count: int) -> tuple[int, int]:
        """Return (start, stop) of a given split in a table of `row_count` rows."""
        value = getattr(self, name)
        if isinstance(value, tuple):
            return value
        before = sum(getattr(self, other) or 0.0 for other in SPLITS[: SPLITS.index(name)])
        slack = FRACTION_SLACK * row_count
        return int(before * row_count + slack), min(row_count, int((before + value) * row_count + slack))


@dataclass(frozen=True)
class SeriesConfig:
    """How windows are cut and scaled.  Lengths are in rows.

    columns: what the model sees, in its order; () means every numeric column but the time column.
    target_columns: what it answers, in its order; () means `columns`.
    time_column: named in errors, never fed, and its values must not go backwards.
    scaling: "standard" by mean and population standard deviation of the training rows, "minmax-window" or "revin" per
        window and feature (see `calibration.scaling`), or "none"; the target is scaled in the same way.
    short_windows: what --include-preprocessing puts before the first row of a short window: that row again ("repeat"),
        or zeros before scaling ("zeros").  Windows cut from a series are never short.

    Raises:
        ConfigurationError: a value that cannot be used.
    """

    context_length: int
    horizon: int
    columns: tuple[str, ...] = ()
    target_columns: tuple[str, ...] = ()
    time_column: str | None = None
    stride: int = 1
    scaling: Scaling = "standard"
    target: TargetStyle = "path"
    short_windows: ShortWindows = "repeat"
    split: Splits = field(default_factory=lambda: Splits(0.7, 0.1, 0.2))

    def __post_init__(self) -> None:
        for key in ("context_length", "horizon", "stride"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{key} = {value!r} must be a whole number of rows, 1 or more.")
        words = {"scaling": get_args(Scaling), "target": get_args(TargetStyle), "short_windows": get_args(ShortWindows)}
        for key, allowed in words.items():
            value = getattr(self, key)
            if value not in allowed:
                hint = did_you_mean(str(value), allowed)
                raise ConfigurationError(f"{key} = {value!r} is unknown{hint}; allowed are {', '.join(allowed)}.")
        for key in ("columns", "target_columns"):
            names = getattr(self, key)
            twice = [name for at, name in enumerate(names) if name in names[:at]]
            if twice:
                raise ConfigurationError(f"{key} names {twice[0]!r} twice.")
            if self.time_column in names:
                raise ConfigurationError(f"{key} names {self.time_column!r}, which is the time column.")
        if self.target == "point" and len(self.target_columns) != 1:
            raise ConfigurationError(
                f'target = "point" needs exactly one target column, and target_columns names '
                f"{len(self.target_columns)}.",
                next_step='Set target_columns = ["NAME"], or target = "path".',
            )
        if self.scaling == "standard" and "train" not in self.split.given:
            raise ConfigurationError(
                'scaling = "standard" uses statistics of the training rows, and split names no train.',
                next_step='Give split a train, or set scaling = "minmax-window" or "none".',
            )

    @property
    def span(self) -> int:
        """Rows of one window, context and horizon."""
        return self.context_length + self.horizon

    @property
    def rows_before_target(self) -> int:
        """Rows of a window that lie before its first target row."""
        return self.context_length if self.target == "path" else self.span - 1


KEYS = tuple(f.name for f in fields(SeriesConfig))
KEYS_NEEDED = (
    "Needed are context_length and horizon (from the model's configuration where it has them). Optional: columns "
    "(default: every numeric column but the time column), target_columns (default: columns), time_column, stride (1), "
    'scaling ("standard"), target ("path"), short_windows ("repeat") and split (train = 0.7, validation = 0.1, '
    "test = 0.2)."
)


def series_config_from_mapping(
    mapping: Mapping[str, object], *, model_config: Mapping[str, Any] | None = None
) -> SeriesConfig:
    """Read a series configuration as it stands in a TOML file.

    `context_length` and `horizon` default to the entries of that name in `model_config`.

    Raises:
        ConfigurationError: unknown or missing keys, or values of a wrong kind.
    """
    check_keys("the series configuration", mapping, KEYS)
    values: dict[str, Any] = dict(mapping)
    for key in ("context_length", "horizon"):
        if key not in values and model_config is not None and key in model_config:
            values[key] = model_config[key]
        if key not in values:
            raise ConfigurationError(f"the series configuration lacks {key}.", next_step=KEYS_NEEDED)
    for key in ("columns", "target_columns"):
        if key in values:
            values[key] = column_names(key, values[key])
    if not isinstance(values.get("time_column", ""), str):
        raise ConfigurationError(f"time_column = {values['time_column']!r} must be the name of a column.")
    if "split" in values:
        values["split"] = splits_from_mapping(values["split"])
    return SeriesConfig(**values)


def splits_from_mapping(value: object) -> Splits:
    """Read `split` as it stands in a TOML file: a table with train, validation and test."""
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"split = {value!r} must be a table of train, validation and test: {SPLIT_FORMS}.")
    check_keys("split", value, SPLITS)
    return Splits(**{name: split_rows(name, rows) for name, rows in value.items()})


def split_rows(name: str, value: object) -> tuple[int, int] | float:
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(row) is int for row in value):
        return value[0], value[1]
    if isinstance(value, float):
        return value
    raise ConfigurationError(f"split {name} = {value!r} cannot be used; allowed is {SPLIT_FORMS}.")


def column_names(key: str, value: object) -> tuple[str, ...]:
    if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise ConfigurationError(f'{key} = {value!r} must be a list of column names, for example ["open", "close"].')


def check_keys(what: str, mapping: Mapping[str, object], allowed: tuple[str, ...]) -> None:
    for key in mapping:
        if key not in allowed:
            raise ConfigurationError(
                f"{what} has no key {key!r}{did_you_mean(str(key), allowed)}; allowed are {', '.join(allowed)}.",
                next_step="Correct or remove the key.",
            )
