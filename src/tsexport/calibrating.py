"""The ranges that a build's static candidates are made with: those of --calibration-table, or taken once and cached."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tsexport.context import Context

if TYPE_CHECKING:
    from tsexport.calibration.datasets import Dataset
    from tsexport.calibration.table import CalibrationTable, Observer
    from tsexport.quantize.sources import Calibrate


def cached_calibration(context: Context) -> "Calibrate":
    """Return what takes ranges in this build: candidates that observe the same tensors alike share one pass.

    It raises CalibrationTableError where the build was given tables and none of them matches.
    """

    def ranges(model: Path, dataset: "Dataset", tensors: Sequence[str], observer: "Observer") -> "CalibrationTable":
        from tsexport.calibration.activations import model_digest
        from tsexport.calibration.table import CalibrationTable, calibrate
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
        inputs = {"model": digest, "data": dataset.digest, "tensors": tuple(tensors), "observer": observer}
        cached = context.cache.stage(
            "calibration", inputs, CalibrationTable, lambda folder: calibrate(model, dataset, tensors, observer)
        )
        return cached.result

    return ranges
