"""Which windows a build calibrates with, and which it judges by.

Calibration draws from the training split, by regime (see `calibration.regimes`), evaluation plainly from the test
split; both are drawn by the seed, and evaluation never reads what calibration saw.  Where the user gives nothing, a
registered model has its reference series (see `calibration.reference`) where there is one.  Any other model has no
data: then only random feeds are compared, and INT8 is refused, since calibrating on data of another kind would be a
lie.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsexport.cache import digest_of
from tsexport.errors import ConfigurationError, DataError, UsageError
from tsexport.options import BuildOptions
from tsexport.targets import Target
from tsexport.types import TensorSpec, file_sha256

if TYPE_CHECKING:
    from tsexport.calibration.checks import Purpose
    from tsexport.calibration.datasets import Dataset
    from tsexport.calibration.series import SeriesConfig, SplitName
    from tsexport.models.sources import SourceIdentity

CALIBRATION_WINDOWS = 256
"""A static recipe keeps only ranges of activations; more windows cost time and move those ranges little."""
EVALUATION_WINDOWS = 1024
EVALUATION_BYTES = 256 * 2**20
"""Windows for evaluation are held in memory: this is the most they may take, inputs alone."""
_CALIBRATION_SPLITS: "tuple[SplitName, ...]" = ("train", "validation", "test")
_EVALUATION_SPLITS: "tuple[SplitName, ...]" = ("test", "validation", "train")

_NO_SERIES = (
    "give --config FILE with [series]: columns, target_columns, context_length, horizon and scaling say what the model "
    "was trained on"
)


@dataclass(frozen=True)
class DataPlan:
    """The data a build reads, decided without reading it.  `digest` changes with the content and the configuration.

    With `raw` the windows are handed out as they are, since the graph prepares them; `series` then says how.
    """

    calibration: Path | None
    evaluation: Path | None
    series: "SeriesConfig | None"
    reference: bool
    seed: int
    digest: str
    raw: bool = False

    @property
    def is_empty(self) -> bool:
        return not self.reference and self.calibration is None and self.evaluation is None


@dataclass(frozen=True)
class Opened:
    """A drawn set of windows: `indices` and `ids` say which of the data with digest `base_digest` they are.

    `regimes` counts those of each regime, where they were drawn by it.
    """

    dataset: "Dataset"
    base_digest: str
    indices: tuple[int, ...]
    ids: tuple[str, ...]
    source: str
    notes: tuple[str, ...]
    regimes: Mapping[str, int] = field(default_factory=dict)


def model_config(identity: "SourceIdentity") -> Mapping[str, Any]:
    """Return the configuration of a registered model, or the settings of a factory, as a mapping."""
    return asdict(identity.config) if identity.config else dict(identity.settings)


def plan_data(options: BuildOptions, target: Target, identity: "SourceIdentity") -> DataPlan:
    """Decide which data a build reads.

    Raises:
        UsageError: an int8 target without calibration data for a user's own model or checkpoint, or for a registered
            model, or a component of one, that has no reference series.
        DataError: a file that is not there.
        ConfigurationError: a series configuration that cannot be used, or that is missing where windows are prepared.
    """
    from tsexport.calibration.opening import SERIES_SUFFIXES
    from tsexport.calibration.preparation import raw_inputs
    from tsexport.calibration.reference import has_reference, has_reference_series
    from tsexport.calibration.series import series_config_from_mapping

    own = identity.kind != "registered" or (identity.checkpoint is not None and not identity.is_reference)
    if options.include_preprocessing:
        known = identity.kind == "registered" and has_reference_series(identity.name, model_config(identity))
        _require_series(identity, known or options.series is not None)
    if target.precision == "int8" and options.calibration is None and own:
        raise UsageError(
            f"{target.name} calibrates on data like the model's own, and for {options.model} none was given",
            next_step="give --calibration FILE: .npz of arrays named as the inputs, or csv or parquet with [series]",
        )
    part = identity.component
    has_own_reference = not own and part is None and has_reference(identity.name, model_config(identity))
    if target.precision == "int8" and options.calibration is None and not own and not has_own_reference:
        inputs = raw_inputs(identity.inputs) if options.include_preprocessing else identity.inputs
        raise UsageError(
            f"{target.name} calibrates on data, and tsexport has no reference series for "
            f"{f'the component {part.name} of ' if part else ''}{options.model}",
            next_step=f"give --calibration FILE: .npz of arrays named as the inputs ({', '.join(map(str, inputs))})",
        )
    for path in (options.calibration, options.evaluation):
        if path is not None and not path.is_file():
            raise UsageError(f"{path} is not a file; expected calibration or evaluation data")
    files = [path for path in (options.calibration, options.evaluation) if path is not None]
    series = None
    if any(path.name.lower().endswith(SERIES_SUFFIXES) for path in files) or options.series is not None:
        series = series_config_from_mapping(options.series or {}, model_config=model_config(identity))
    # Where only evaluation data is given, calibration still has the reference series.
    reference = options.calibration is None and has_own_reference
    digest = digest_of(
        {
            "calibration": _named_digest(options.calibration),
            "evaluation": _named_digest(options.evaluation),
            "series": series,
            "reference": [identity.name, model_config(identity)] if reference else "",
            "seed": options.seed,
            "windows": [CALIBRATION_WINDOWS, EVALUATION_WINDOWS],
            "raw": options.include_preprocessing,
        }
    )
    return DataPlan(
        options.calibration, options.evaluation, series, reference, options.seed, digest, options.include_preprocessing
    )


def _require_series(identity: "SourceIdentity", known: bool) -> None:
    """Raise where nothing says how a model's windows are prepared, before anything is opened.

    Args:
        identity: the model.
        known: there is a `[series]`, or the model has a reference series.

    Raises:
        UsageError: an .onnx file, which holds no module to put a preparation before.
        ConfigurationError: no series configuration is known.
    """
    if identity.kind == "onnx":
        raise UsageError(
            f"--include-preprocessing puts operators before a torch module, and {identity.model} is an ONNX file",
            next_step="name the torch model that it was made of, as a registered name or module:factory",
        )
    if not known:
        raise ConfigurationError(
            "--include-preprocessing needs to know how windows are scaled, and tsexport knows no series for "
            f"{identity.model}",
            next_step=_NO_SERIES,
        )


def _named_digest(path: Path | None) -> str:
    """Return a file's content, and its name, since the manifest names it."""
    return f"{file_sha256(path)} {path.name}" if path else ""


def open_calibration(plan: DataPlan, identity: "SourceIdentity", inputs: tuple[TensorSpec, ...]) -> Opened | None:
    """Return the calibration windows, checked against the model's inputs; None where there are none.

    Where evaluation has to read the same data, what it needs is left over.

    Raises:
        DataError: the data does not fit the model or cannot be used.
    """
    from tsexport.calibration.checks import MIN_SAMPLES

    if plan.calibration is None and not plan.reference:
        return None
    base, source = _base(plan, plan.calibration, identity, inputs, _CALIBRATION_SPLITS)
    judged, _ = _base(plan, plan.evaluation or plan.calibration, identity, inputs, _EVALUATION_SPLITS)
    spare = MIN_SAMPLES["evaluation"] if judged.digest == base.digest else 0
    wanted = max(MIN_SAMPLES["calibration"], min(CALIBRATION_WINDOWS, base.count - spare))
    return _drawn(base, plan, inputs, "calibration", wanted, source, ())


def open_evaluation(
    plan: DataPlan, identity: "SourceIdentity", inputs: tuple[TensorSpec, ...], calibration: Opened | None
) -> Opened | None:
    """Return the evaluation windows, none of which calibration saw; None where there are none.

    Raises:
        DataError: the data does not fit the model or cannot be used.
    """
    if plan.is_empty:
        return None
    path = plan.evaluation or plan.calibration
    base, source = _base(plan, path, identity, inputs, _EVALUATION_SPLITS)
    same = calibration is not None and calibration.base_digest == base.digest
    seen = calibration.indices if calibration is not None and same else ()
    wanted = min(EVALUATION_WINDOWS, _windows_that_fit(inputs))
    return _drawn(base, plan, inputs, "evaluation", wanted, source, seen)


def _base(
    plan: DataPlan,
    path: Path | None,
    identity: "SourceIdentity",
    inputs: tuple[TensorSpec, ...],
    splits: "tuple[SplitName, ...]",
) -> "tuple[Dataset, str]":
    from tsexport.calibration.opening import open_dataset, timed_windows
    from tsexport.calibration.reference import raw_reference_windows, reference_windows

    names = [spec.name for spec in inputs]
    if path is None:
        windows = raw_reference_windows if plan.raw else reference_windows
        return windows(identity.name, model_config(identity), plan.seed, splits[0], names)
    series = replace(plan.series, scaling="none") if plan.raw and plan.series is not None else plan.series
    split = next((s for s in splits if series is None or s in series.split.given), splits[0])
    if plan.raw and series is not None and len(inputs) == 2 and path.suffix != ".npz":
        return timed_windows(path, series, split, inputs), path.name
    return open_dataset(path, series=series, split=split, names=names), path.name


def _drawn(
    base: "Dataset",
    plan: DataPlan,
    inputs: tuple[TensorSpec, ...],
    purpose: "Purpose",
    wanted: int,
    source: str,
    seen: tuple[int, ...],
) -> Opened:
    from tsexport.calibration.checks import MIN_SAMPLES, check_dataset, check_names
    from tsexport.calibration.datasets import draw
    from tsexport.calibration.regimes import draw_by_regime

    check_names(base, inputs)
    free = base.count - len(seen)
    if seen and free < MIN_SAMPLES[purpose]:
        raise DataError(
            f"{purpose} got {free} samples, since calibration reads {len(seen)} of the {base.count} in {source}, and "
            f"needs at least {MIN_SAMPLES[purpose]}.",
            next_step="Give more samples, or other ones with --evaluation.",
        )
    seed = plan.seed + (purpose == "evaluation")
    count = max(1, min(wanted, free))
    if purpose == "calibration":
        by_regime = draw_by_regime(base, count, seed, exclude=seen)
        drawn, regimes = by_regime.subset, by_regime.regimes
    else:
        drawn, regimes = draw(base, count, seed, exclude=seen), {}
    checked = check_dataset(drawn, inputs, purpose, gaps_in=inputs[0].name if plan.raw else None)
    return Opened(checked.dataset, base.digest, drawn.indices, drawn.sample_ids, source, checked.notes, regimes)


def _windows_that_fit(inputs: tuple[TensorSpec, ...]) -> int:
    import numpy as np

    one = sum(int(np.prod(spec.with_batch(1))) * np.dtype(spec.dtype).itemsize for spec in inputs)
    return max(1, EVALUATION_BYTES // one)
