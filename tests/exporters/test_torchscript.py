"""TorchScript: the trace is the module whatever the mode, batch and call, and the file depends on it alone."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tsexport.errors import ExportError, FeedError, ParityError
from tsexport.exporters.torchscript import export_torchscript
from tsexport.runtimes.comparison import TOLERANCES, compare_outputs
from tsexport.runtimes.registry import load
from tsexport.types import random_feeds

SOUND = ("mlp", "encoder", "lstm", "conv", "two-inputs", "two-outputs")


def answers(module, spec, feeds):
    module.eval()
    with torch.inference_mode():
        answer = module(*(torch.from_numpy(feeds[t.name].copy()) for t in spec.inputs))
    return dict(zip([t.name for t in spec.outputs], answer if isinstance(answer, tuple) else (answer,), strict=True))


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("example_batch", [1, 2])
def test_exported_trace_answers_as_the_module(make, tmp_path, name, example_batch):
    module, spec = make(name)
    artifact = export_torchscript(module, spec, random_feeds(spec.inputs, example_batch, 0), tmp_path / "model.pt")
    assert (artifact.inputs, artifact.outputs, artifact.runtimes) == (spec.inputs, spec.outputs, ("torchscript",))
    assert artifact.size_bytes == artifact.path.stat().st_size
    with load(artifact, "torchscript", threads=1) as session:
        for batch in (1, 4, 7):
            feeds = random_feeds(spec.inputs, batch, 3)
            expected = {n: t.numpy() for n, t in answers(module, spec, feeds).items()}
            compared = compare_outputs(expected, session.run(feeds), TOLERANCES["fp32-same-math"], scaled=True)
            assert all(c.passed for c in compared), compared


def test_module_left_in_training_mode_is_exported_without_dropout_and_given_back_as_it_was(make, tmp_path):
    module, spec = make("encoder")
    module.train()
    module.head.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        artifact = export_torchscript(module, spec, random_feeds(spec.inputs, 2, 0), tmp_path / "model.pt")
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert module.training
    assert module.encoder.layers[0].training
    assert not module.head.training
    feeds = random_feeds(spec.inputs, 2, 1)
    with load(artifact, "torchscript", threads=1) as session:
        np.testing.assert_array_equal(session.run(feeds)["forecast"], session.run(feeds)["forecast"])


def test_fast_path_of_the_encoder_is_kept(make, tmp_path):
    module, spec = make("encoder")
    export_torchscript(module, spec, random_feeds(spec.inputs, 2, 0), tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        code = b"".join(archive.read(n) for n in archive.namelist() if n.endswith(".py"))
    assert b"_transformer_encoder_layer_fwd" in code


def test_dropout_outside_eval_mode_is_an_error(make, tmp_path):
    module, spec = make("always-dropout")
    with pytest.raises(ExportError, match="answers the same input differently each time") as caught:
        export_torchscript(module, spec, random_feeds(spec.inputs, 2, 0), tmp_path / "model.pt")
    assert "training=self.training" in caught.value.next_step
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize(("name", "kind"), [("baked-reshape", ExportError), ("baked-value", ParityError)])
def test_baked_batch_size_is_explained(make, tmp_path, name, kind):
    module, spec = make(name)
    with pytest.raises(kind, match="batch size was baked in") as caught:
        export_torchscript(module, spec, random_feeds(spec.inputs, 2, 0), tmp_path / "model.pt")
    assert "at batch 3" in caught.value.message
    assert "conftest.py:" in caught.value.message
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize("sign", [1, -1])
def test_data_dependent_branch_is_found_whichever_way_the_example_goes(make, tmp_path, sign):
    module, spec = make("branching")
    feeds = {"x": np.full((2, 6), sign, np.float32)}
    with pytest.raises(ParityError, match="turns a tensor into a Python value"):
        export_torchscript(module, spec, feeds, tmp_path / "model.pt")


def test_harmless_python_value_is_a_caveat(make, tmp_path):
    module, spec = make("mlp")

    class Asserted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x):
            assert x.abs().max() < 1e9
            return self.inner(x)

    feeds = random_feeds(spec.inputs, 2, 0)
    assert not any("caveat" in p for p in export_torchscript(module, spec, feeds, tmp_path / "a.pt").provenance)
    caveats = [p for p in export_torchscript(Asserted(), spec, feeds, tmp_path / "b.pt").provenance if "caveat" in p]
    assert len(caveats) == 1
    assert caveats[0].startswith("caveat: test_torchscript.py:")


def test_same_module_gives_the_same_bytes_whatever_was_traced_before(make, tmp_path):
    first = export_torchscript(*make("encoder"), random_feeds(make("encoder")[1].inputs, 2, 0), tmp_path / "a.pt")
    export_torchscript(*make("mlp"), random_feeds(make("mlp")[1].inputs, 2, 0), tmp_path / "other.pt")
    again = export_torchscript(*make("encoder"), random_feeds(make("encoder")[1].inputs, 3, 5), tmp_path / "b.pt")
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    assert first.sha256 == again.sha256


def test_file_holds_no_paths_and_no_inputs(make, tmp_path):
    module, spec = make("encoder")
    export_torchscript(module, spec, random_feeds(spec.inputs, 2, 0), tmp_path / "model.pt")
    data = (tmp_path / "model.pt").read_bytes()
    assert str(Path(__file__).parent).encode() not in data
    assert b"site-packages" not in data
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        assert not [n for n in archive.namelist() if "traced_inputs" in n or "debug" in n]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: {}, "the model's inputs are"),
        (lambda f: {"x": f["x"].astype(np.float64)}, "expected x float32"),
        (lambda f: {"x": f["x"][:, :4]}, "expected x float32"),
        (lambda f: {"x": np.float32(1.0) * np.ones(())}, "expected x float32"),
    ],
)
def test_example_feeds_that_do_not_fit_are_refused(make, tmp_path, change, message):
    module, spec = make("mlp")
    with pytest.raises(FeedError, match=message):
        export_torchscript(module, spec, change(random_feeds(spec.inputs, 2, 0)), tmp_path / "model.pt")


@pytest.mark.parametrize("answer", [lambda x: {"y": x}, lambda x: (x, x), lambda x: None])
def test_module_that_returns_something_else_is_refused(make, tmp_path, answer):
    _, spec = make("mlp")

    class Other(torch.nn.Module):
        def forward(self, x):
            return answer(x)

    with pytest.raises(ExportError, match=r"expected a tensor or tuple for y float32\[batch, 3\]"):
        export_torchscript(Other(), spec, random_feeds(spec.inputs, 2, 0), tmp_path / "model.pt")


def test_interrupted_write_leaves_the_old_file(make, tmp_path, monkeypatch):
    module, spec = make("mlp")
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")
    monkeypatch.setattr("os.fdopen", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        export_torchscript(module, spec, random_feeds(spec.inputs, 2, 0), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_room_and_table_import_without_the_heavy_packages():
    code = (
        "import sys, tsexport.exporters, tsexport.exporters.formats, tsexport.exporters.checks;"
        "print(*{'torch', 'onnx', 'onnxruntime', 'openvino'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""
