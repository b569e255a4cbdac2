"""What the matrix needs once a session: every case opened and exported as a build does it, and its INT8 candidates."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest
from cases import BY_NAME, Case

from tsexport.calibration.arrays import ArrayDataset
from tsexport.exporters.conversion import (
    Converted,
    convert_to_onnx,
    convert_to_openvino,
    convert_to_torchscript,
    file_name,
)
from tsexport.models.sources import OpenedSource, identify, open_source
from tsexport.quantize.candidates import Built, build_candidate
from tsexport.quantize.recipe import Recipe
from tsexport.quantize.sources import Fp32Sources
from tsexport.types import Artifact, Feeds, Format


@dataclass(frozen=True)
class Exported:
    """A case with its source model; each format is converted when it is first asked for."""

    case: Case
    source: OpenedSource
    real: Feeds
    folder: Path

    @cached_property
    def converted(self) -> Callable[[Format], Converted]:
        """Return a function from a format to what it was converted to."""

        @cache
        def convert(artifact_format: Format) -> Converted:
            path = self.folder / file_name(artifact_format)
            if artifact_format == "onnx":
                return convert_to_onnx(self.source.module, None, self.source.spec, self.real, path)
            if artifact_format == "torchscript":
                return convert_to_torchscript(self.source.module, self.source.spec, self.real, path)
            return convert_to_openvino(self.artifact("onnx"), path)

        return convert

    def artifact(self, artifact_format: Format) -> Artifact:
        return self.converted(artifact_format).artifact


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Callable[[str], Exported]:
    """Return a function from a case's name to its exports; each is made once."""

    @cache
    def export(name: str) -> Exported:
        case = BY_NAME[name]
        if case.missing:
            pytest.skip(case.missing)
        folder = tmp_path_factory.mktemp(name)
        source = open_source(
            identify(case.model, checkpoint=case.checkpoint_path, settings=case.settings, component=case.component)
        )
        return Exported(case, source, case.real(), folder)

    return export


@pytest.fixture(scope="session")
def quantized(exported) -> Callable[[str, Recipe], Built]:
    """Return a function from a case's name and a recipe to the candidate; each is built once."""

    @cache
    def build(name: str, recipe: Recipe) -> Built:
        one = exported(name)
        sources = Fp32Sources(one.artifact("onnx"), one.artifact("openvino"))
        calibration = ArrayDataset((one.case.calibration or one.case.real)())
        return build_candidate(recipe, sources, one.source.spec, calibration, one.folder)

    return build
