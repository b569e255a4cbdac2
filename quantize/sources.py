"""What candidates are made from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tsexport.calibration.datasets import Dataset
from tsexport.quantize.recipes import Recipe, artifact_name
from tsexport.types import Artifact, ModelSpec

if TYPE_CHECKING:
    from torch import nn


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

    `calibration` gives windows named as the inputs; streamed.
    """

    recipe: Recipe
    source: Artifact
    sources: Fp32Sources
    spec: ModelSpec
    calibration: Dataset

    @property
    def artifact_name(self) -> str:
        return artifact_name(self.recipe)
