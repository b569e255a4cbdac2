"""What the matrix needs once a session: every case opened and exported as a build does it, and its INT8 candidates."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
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
    """A case with its source model and its artifact in every format."""

    case: Case
    source: OpenedSource
    converted: dict[Format, Converted]
    real: Feeds
    folder: Path

    def artifact(self, artifact_format: Format) -> Artifact:
        return self.converted[artifact_format].artifact


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
        real = case.real()
        onnx = convert_to_onnx(source.module, None, source.spec, real, folder / file_name("onnx"))
        converted: dict[Format, Converted] = {
            "onnx": onnx,
            "torchscript": convert_to_torchscript(source.module, source.spec, real, folder / file_name("torchscript")),
            "openvino": convert_to_openvino(onnx.artifact, folder / file_name("openvino")),
        }
        return Exported(case, source, converted, real, folder)

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
