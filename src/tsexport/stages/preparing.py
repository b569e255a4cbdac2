"""--include-preprocessing: which preparation goes into the graph, and the source model with it.

What has to be prepared is what the series configuration says: `[series]` of the --config file, else that of the
model's reference series.  The source model then answers raw windows along the Python path: prepared in numpy and
float64, through the model, and back (`calibration.preparation`).  Its module is the one that is exported
(`exporters.preprocessing`); so every comparison with the source holds the graph against the Python path.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tsexport.cache import digest_of
from tsexport.errors import ConfigurationError
from tsexport.preparation import BesideWindows, Preparation
from tsexport.stages.data import DataPlan, model_config
from tsexport.types import Array, Feeds, ModelSpec, TensorSpec

if TYPE_CHECKING:
    from torch import nn

    from tsexport.calibration.series import SeriesConfig
    from tsexport.calibration.tables import Table
    from tsexport.models.sources import OpenedSource, SourceIdentity

OPTION = "--include-preprocessing"


@dataclass(frozen=True)
class Known:
    """A series configuration with the table it belongs to, where there is one."""

    series: "SeriesConfig"
    table: "Table | None"


def known_series(plan: DataPlan, identity: "SourceIdentity") -> Known:
    """Return the series configuration that a preparation follows.

    Raises:
        ConfigurationError: "standard" scaling without training rows to take the statistics of.
        DataError: the series cannot be read.
    """
    from tsexport.calibration.opening import SERIES_SUFFIXES
    from tsexport.calibration.reference import reference_rule
    from tsexport.calibration.tables import open_table

    if plan.series is not None:
        files = [path for path in (plan.calibration, plan.evaluation) if path is not None]
        path = next((path for path in files if path.name.lower().endswith(SERIES_SUFFIXES)), None)
        known = Known(plan.series, open_table(path) if path is not None else None)
    else:
        table, series = reference_rule(identity.name, model_config(identity), plan.seed)
        foreign = identity.checkpoint is not None and not identity.is_reference
        known = Known(series, table if not foreign and plan.calibration is plan.evaluation is None else None)
    if known.series.scaling == "standard" and known.table is None:
        raise ConfigurationError(
            f'{OPTION} with scaling = "standard" puts statistics of your training rows into the graph, and no series '
            "was given to take them from",
            next_step="give the series as --calibration FILE.csv (or .parquet) with [series] and its split",
        )
    return known


def preparation_of(known: Known, spec: ModelSpec) -> Preparation:
    """Return what goes around a model.

    Raises:
        ConfigurationError: the series does not fit the model's inputs or its first output.
        DataError: the series cannot be read.
    """
    from tsexport.calibration.preparation import raw_inputs
    from tsexport.calibration.windows import resolve_columns, windows_of

    series = known.series
    columns, targets = series.columns, series.target_columns or series.columns
    if known.table is not None:
        columns, targets = resolve_columns(known.table, series)
    beside = _beside(spec)
    raw = raw_inputs(spec.inputs)
    context, channels = spec.inputs[0].shape[1:]
    assert isinstance(channels, int)
    if beside and len(columns) > channels:  # the reference series of such models ends with its calendar
        marks = columns[channels:]
        columns, targets = columns[:channels], tuple(name for name in targets if name not in marks)
    if context != series.context_length or (columns and len(columns) != channels):
        raise ConfigurationError(
            f"{OPTION}: windows of the series are [{series.context_length}, {len(columns) or channels}], and the model "
            f"takes {spec.inputs[0]}",
            next_step="set context_length and columns of [series] to what the model was trained on",
        )
    columns = columns or tuple(f"column_{index}" for index in range(channels))
    preparation = Preparation(
        raw=raw[0].name,
        columns=columns,
        scaling=series.scaling,
        short_windows=series.short_windows,
        beside=beside,
        sorts_quantiles=bool(ordered_quantiles(spec)),
    )
    scales_back = series.scaling != "none" and spec.task != "classification"
    if scales_back:
        _require_target_shape(spec, series, targets or columns, preparation.sorts_quantiles)
    if series.scaling == "standard":
        assert known.table is not None  # `known_series` saw to it
        scales = windows_of(known.table, replace(series, columns=columns, target_columns=targets), "train")
        assert scales.scale is not None
        assert scales.target_scale is not None
        preparation = replace(preparation, mean=_numbers(scales.scale.mean), std=_numbers(scales.scale.std))
        if scales_back:
            preparation = replace(
                preparation,
                targets=tuple(range(len(targets))),
                target_mean=_numbers(scales.target_scale.mean),
                target_std=_numbers(scales.target_scale.std),
            )
    elif scales_back:
        preparation = replace(preparation, targets=_places(targets or columns, columns, series))
    return preparation


def _numbers(values: Array) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _beside(spec: ModelSpec) -> tuple[BesideWindows, ...]:
    """Return what the inputs after the first one are.

    Raises:
        ConfigurationError: the first input is no windows, or another is nothing that can be made of windows and times.
    """
    first, *others = spec.inputs
    windows = len(first.shape) == 3 and first.dtype == "float32" and all(type(dim) is int for dim in first.shape[1:])
    found = tuple(known for other in others if (known := _made_of_windows(spec, other)) is not None)
    if not windows or len(found) < len(others):
        raise ConfigurationError(
            f"{OPTION} prepares windows float32[batch, context_length, channels], and beside them a calendar or which "
            f"rows are there, where a registered model takes it; {spec.name} takes {', '.join(map(str, spec.inputs))}",
            next_step="prepare its inputs before the model, and build without the option",
        )
    return found


def _made_of_windows(spec: ModelSpec, tensor: TensorSpec) -> BesideWindows | None:
    from tsexport.calibration.market_days import CALENDAR
    from tsexport.calibration.synthetic import TIME_MARKS

    marked = bool(spec.config.get("time_marks")) or "known_channels" in spec.config
    if marked and tensor.dtype == "float32" and len(tensor.shape) == 3 and tensor.shape[2] == len(TIME_MARKS):
        return "marks"
    if tensor.name == "calendar" and tensor.dtype == "int64" and tensor.shape[2:] == (len(CALENDAR),):
        return "indices"
    if tensor.name == "valid" and tensor.dtype == "bool" and tensor.shape == spec.inputs[0].shape[:2]:
        return "valid"
    return None


def ordered_quantiles(spec: ModelSpec) -> tuple[float, ...]:
    """Return the levels of a quantile head whose first output has one value for each, in ascending order, else ()."""
    levels = quantile_levels(spec)
    ascending = len(levels) > 1 and all(low < high for low, high in pairwise(levels))
    return levels if ascending and spec.outputs[0].shape[-1] == len(levels) else ()


def quantile_levels(spec: ModelSpec) -> tuple[float, ...]:
    """Return the levels that a model's configuration names as `quantiles`, or ().

    A classifier has none, whatever its configuration names.  The settings of a factory may hold anything under that
    name; what are no numbers are no levels.
    """
    levels = spec.config.get("quantiles", ()) if spec.task != "classification" else ()
    numbers = isinstance(levels, tuple | list) and all(type(level) in (int, float) for level in levels)
    return tuple(levels) if numbers else ()


def _require_target_shape(spec: ModelSpec, series: "SeriesConfig", targets: Sequence[str], quantiles: bool) -> None:
    last = spec.outputs[0].shape[-1] if quantiles and len(targets) == 1 else len(targets)
    wanted = (last,) if series.target == "point" else (series.horizon, last)
    if spec.outputs[0].shape[1:] != wanted:
        names = ", ".join(targets[:4]) + (", ..." if len(targets) > 4 else "")
        raise ConfigurationError(
            f"{OPTION} scales the first output back as the series' target, {list(wanted)} of {names}, and the model "
            f"gives {spec.outputs[0]}",
            next_step="set target, target_columns and horizon of [series] to what the model answers",
        )


def _places(targets: Sequence[str], columns: Sequence[str], series: "SeriesConfig") -> tuple[int, ...]:
    missing = [name for name in targets if name not in columns]
    if missing:
        raise ConfigurationError(
            f'{OPTION}: scaling = "{series.scaling}" takes its numbers from the window, and the target column '
            f"{missing[0]!r} is not among its columns {', '.join(columns)}",
            next_step='add it to columns, or train with scaling = "standard"',
        )
    return tuple(columns.index(name) for name in targets)


def prepared_source(source: "OpenedSource", plan: DataPlan, identity: "SourceIdentity") -> "OpenedSource":
    """Return a source model behind the preparation that its series asks for.

    Raises:
        ConfigurationError, DataError: see `known_series` and `preparation_of`.
    """
    return with_preparation(source, preparation_of(known_series(plan, identity), source.spec))


def with_preparation(source: "OpenedSource", preparation: Preparation) -> "OpenedSource":
    """Return a source model that takes raw feeds: it answers along the Python path, its module is the one to export."""
    from tsexport.calibration.preparation import finish, prepare, raw_inputs

    assert source.module is not None  # `plan_data` refuses the only kind without
    inner = source
    spec = replace(
        source.spec,
        inputs=raw_inputs(source.spec.inputs),
        config={**source.spec.config, "preprocessing": _record(preparation)},
    )

    def answer(feeds: Feeds) -> dict[str, Array]:
        prepared = prepare(preparation, feeds)
        names = [tensor.name for tensor in inner.spec.inputs]
        outputs = inner.run(dict(zip(names, prepared.arrays, strict=True)))
        first = inner.spec.outputs[0].name
        return {**outputs, first: finish(preparation, outputs[first], prepared.scale)}

    return replace(
        source,
        spec=spec,
        digest=digest_of({"source": source.digest, "preparation": preparation}),
        notes=(*source.notes, *_notes(spec.inputs, preparation)),
        module=_module(source.module, inner.spec, preparation),
        _answer=answer,
    )


def _module(module: "nn.Module", spec: ModelSpec, preparation: Preparation) -> "nn.Module":
    from tsexport.calibration.preparation import calendar_tables
    from tsexport.exporters.preprocessing import Calendar, PreparedModel

    steps, values = spec.inputs[0].shape[1], spec.outputs[0].shape[-1]
    assert isinstance(steps, int)
    assert isinstance(values, int)
    form = next((one for one in preparation.beside if one != "valid"), None)
    calendar = Calendar(*calendar_tables(form)) if form is not None else None
    return PreparedModel(module, preparation, steps, values, calendar).eval().requires_grad_(False)


def _record(preparation: Preparation) -> dict[str, Any]:
    """Return what the manifest says under `config.preprocessing`."""
    return {
        "columns": list(preparation.columns),
        "scaling": preparation.scaling,
        "short_windows": preparation.short_windows,
        "beside": list(preparation.beside),
        "scales_back": bool(preparation.targets),
        "sorts_quantiles": preparation.sorts_quantiles,
    }


def _notes(inputs: tuple[TensorSpec, ...], preparation: Preparation) -> tuple[str, ...]:
    names = ", ".join(preparation.columns)
    parts = [f"{preparation.scaling} scaling"] if preparation.scaling != "none" else []
    parts += ["the calendar"] if preparation.takes_times else []
    parts += ["which rows are there"] if "valid" in preparation.beside else []
    parts += ["scaling back"] if preparation.targets else []
    parts += ["the order of quantiles"] if preparation.sorts_quantiles else []
    units = "; forecasts and errors are in the series' own units" if preparation.targets else ""
    notes = [
        f"preparation in the graph: gaps{''.join(f', {part}' for part in parts)}. {inputs[0].name} takes {names} as "
        f"they are, NaN where a value is missing{units}"
    ]
    if preparation.takes_times:
        notes.append(f"{inputs[1].name} takes minutes since 1970-01-01 00:00 on the series' own clock")
    return tuple(notes)
