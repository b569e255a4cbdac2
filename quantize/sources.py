"""What candidates are made from, and what a tool raises that can make none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tsexport.calibration.datasets import Dataset
from tsexport.calibration.table import CalibrationTable, Observer, calibrate
from tsexport.quantize.recipe import Recipe, artifact_name
from tsexport.types import Artifact, ModelSpec

if TYPE_CHECKING:
    from torch import nn

Calibrate = Callable[[Path, Dataset, Sequence[str], Observer], CalibrationTable]
"""Takes ranges, as `calibration.table.calibrate` does; a build's own keeps them and re-uses those that it was given."""


class NothingQuantizedError(Exception):
    """The recipe found no node that it could quantize."""


@dataclass(frozen=True)
class Fp32Sources:
    """The fp32 artifacts that candidates are made from; None where the model has none in that format.

    `module` gives the source module in eval mode, for tools that quantize in torch; None where there is no module (an
    .onnx source).
    """

    onnx: Artifact | None
    openvino: Artifact | None
    module: "Callable[[], nn.Module] | None" = None

    def in_format(self, name: str) -> Artifact | None:
        """Return the fp32 artifact in a format, or None."""
        return {"onnx": self.onnx, "openvino": self.openvino}.get(name)


@dataclass(frozen=True)
class Order:
    """One candidate to be built: the recipe, the fp32 artifact in its format, and what calibrates it.

    `calibration` gives windows named as the inputs; streamed.  A tool that calibrates by table calls `ranges`.
    """

    recipe: Recipe
    source: Artifact
    sources: Fp32Sources
    spec: ModelSpec
    calibration: Dataset
    calibrate: Calibrate = calibrate

    def ranges(self, tensors: Sequence[str], observer: Observer) -> CalibrationTable:
        """Return the ranges of tensors of the source graph.

        Raises:
            DataError: as `calibration.table.calibrate`.
            CalibrationTableError: the build was given a table that does not match.
        """
        return self.calibrate(self.source.path, self.calibration, tensors, observer)

    @property
    def artifact_name(self) -> str:
        return artifact_name(self.recipe)
