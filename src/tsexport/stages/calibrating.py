"""The ranges that a build's static candidates are made with: those of --calibration-table, or taken once and cached."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tsexport.stages.context import Context

if TYPE_CHECKING:
    from tsexport.calibration.datasets import Dataset
    from tsexport.calibration.table import CalibrationTable, Observer
    from tsexport.quantize.sources import Calibrate

_FILE = "histograms.npz"


@dataclass(frozen=True)
class ObservedTensors:
    """The tensors whose histograms the cache holds, in their order."""

    tensors: tuple[str, ...]


def cached_calibration(context: Context) -> "Calibrate":
    """Return what takes ranges in this build: the windows are run once for all observers of the same tensors.

    It raises CalibrationTableError where the build was given tables and none of them matches.
    """

    def ranges(model: Path, dataset: "Dataset", tensors: Sequence[str], observer: "Observer") -> "CalibrationTable":
        from tsexport.calibration.activations import model_digest, observe, table_of
        from tsexport.calibration.histogram_files import read_histograms, write_histograms
        from tsexport.calibration.table_files import matching_table

        digest = model_digest(model)
        if context.calibration_tables:
            return matching_table(
                context.calibration_tables,
                model_sha256=digest,
                data_sha256=dataset.digest,
                tensors=tensors,
                observer=observer,
            )

        def produce(folder: Path) -> ObservedTensors:
            write_histograms(folder / _FILE, observe(model, dataset, tensors, observer.axis))
            return ObservedTensors(tuple(tensors))

        inputs = {"model": digest, "data": dataset.digest, "tensors": tuple(tensors), "axis": observer.axis}
        cached = context.cache.stage("histograms", inputs, ObservedTensors, produce)
        seen = read_histograms(cached.folder / _FILE, cached.result.tensors)
        return table_of(seen, model, dataset, observer)

    return ranges
