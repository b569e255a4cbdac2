"""Every case in every format as Triton's backends would open it: names, dtypes and shapes are those of the file."""

from dataclasses import replace

import pytest
from cases import BY_NAME
from triton_backends import check_model

from tsexport.bundles.entries import artifact_entry
from tsexport.bundles.manifest import GoldenTolerance, RankedArtifact
from tsexport.bundles.triton import write_repository
from tsexport.targets import parse_target
from tsexport.types import FORMATS

RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "torchscript": "torchscript"}
BATCHES = (1, 4)


@pytest.mark.parametrize("artifact_format", FORMATS)
@pytest.mark.parametrize("name", BY_NAME)
def test_the_repository_agrees_with_the_artifact(exported, bundle, tmp_path, name, artifact_format):
    one = exported(name)
    artifact, runtime = one.artifact(artifact_format), RUNTIMES[artifact_format]
    root = artifact.path.parent
    entry = replace(artifact_entry(artifact, root, GoldenTolerance("t", "t", 1.0, 1.0)), runtimes=(runtime,))
    for file in entry.files:
        (tmp_path / file.path).symlink_to(root / file.path)
    manifest = replace(
        bundle.manifest, artifacts=(entry,), model=one.source.spec, target=parse_target("cpu4-fp32", "avx2"),
        selected=replace(bundle.manifest.selected, artifact=entry.name, runtime=runtime),
    )  # fmt: skip
    selection = replace(
        bundle.selection, artifact=entry.name, runtime=runtime, order=(RankedArtifact(entry.name, runtime),),
        triton_batch_sizes=BATCHES,
    )  # fmt: skip
    (served,) = write_repository(tmp_path, manifest, selection)
    config = check_model(tmp_path / "triton" / served.config.name)
    assert config.max_batch_size == max(BATCHES)
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
