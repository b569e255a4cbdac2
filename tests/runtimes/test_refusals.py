"""What sessions refuse, with messages that say what was expected: feeds, values, files and options."""

import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tsexport.errors import BundleError, ConfigurationError, FeedError, UsageError
from tsexport.runtimes import registry
from tsexport.runtimes.comparison import TOLERANCES, compare_outputs
from tsexport.runtimes.sessions import check_feeds
from tsexport.types import TensorSpec

ROWS = (*registry.RUNTIMES, *registry.GPU_RUNTIMES)
CASES = [(row.name, artifact_format) for row in ROWS for artifact_format in row.formats]
EVERY = pytest.mark.parametrize(("runtime", "artifact_format"), CASES, ids=["-".join(case) for case in CASES])
IR17 = '<ir_version: 8, opset_import: ["" : 17]>'


# --- feeds that are refused ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session(small):
    with registry.load(small.artifacts["onnx"], "onnxruntime", threads=1) as loaded:
        yield loaded


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: {"x": f["x"]}, r"missing input 'ids'; expected x float32\[batch, 3, 4\], ids int64\[batch, 2\]"),
        (lambda f: f | {"idz": f["ids"]}, r"unknown input 'idz' \(did you mean 'ids'\?\); expected x float32"),
        (lambda f: f | {"x": f["x"].tolist()}, r"input 'x' is a list; expected a numpy array x float32\[batch, 3, 4\]"),
        (
            lambda f: f | {"x": f["x"].astype("f8")},
            r"input 'x' is float64; expected x float32.*\n.*astype\('float32'\)",
        ),
        (lambda f: f | {"x": f["x"].astype(">f4")}, r"input 'x' is >f4; expected x float32"),
        (lambda f: f | {"ids": f["ids"].astype("i4")}, r"input 'ids' is int32; expected ids int64"),
        (lambda f: f | {"x": f["x"][0]}, r"input 'x' has shape \(3, 4\) of rank 2; expected x float32"),
        (lambda f: f | {"x": f["x"][:, :2]}, r"input 'x' has shape \(5, 2, 4\); dimension 1 must be 3: expected x"),
        (lambda f: {n: a[:0] for n, a in f.items()}, r"dimension 0 must be at least 1"),
        (lambda f: f | {"ids": f["ids"][:2]}, r"inputs disagree on the batch: x 5, ids 2"),
        (lambda f: list(f.values()), r"feeds are a list; expected x float32.*\n.*dict"),
    ],
)
def test_feeds_that_are_refused(session, small_feeds, change, message):
    with pytest.raises(FeedError, match=message):
        session.run(change(small_feeds(5)))


def test_checked_feeds_keep_scalars_and_the_order_of_inputs():
    inputs = (TensorSpec("a", "float32", ("batch",)), TensorSpec("scale", "float32", ()))
    arrays, batch = check_feeds(inputs, {"scale": np.array(2, np.float32), "a": np.zeros(3, np.float32)})
    assert list(arrays) == ["a", "scale"]
    assert arrays["scale"].shape == ()
    assert batch == 3


@EVERY
def test_run_after_close_is_an_error(small, small_feeds, runtime, artifact_format):
    session = registry.load(small.artifacts[artifact_format], runtime, threads=1)
    with session:
        session.run(small_feeds(1))
    session.close()  # twice is fine
    with pytest.raises(UsageError, match=r"is closed\nload the artifact again"):
        session.run(small_feeds(1))


def test_values_that_onnxruntime_refuses(session, small_feeds):
    feeds = small_feeds(2)
    feeds["ids"][0, 0] = 99
    with pytest.raises(UsageError, match=r"onnxruntime failed on model at batch 2: .*out of data bounds, idx=99"):
        session.run(feeds)


def test_values_that_torchscript_refuses(small, small_feeds):
    feeds = small_feeds(2)
    feeds["ids"][0, 0] = 99
    with (
        registry.load(small.artifacts["torchscript"], "torchscript", threads=1) as session,
        pytest.raises(UsageError, match=r"torchscript failed on small at batch 2: \w*Error: index 99 is out of bounds"),
    ):
        session.run(feeds)


# --- files and options that are refused ------------------------------------------------------------------------------


@EVERY
def test_a_corrupt_file(small, tmp_path, runtime, artifact_format):
    artifact = small.artifacts[artifact_format]
    path = tmp_path / artifact.path.name
    path.write_bytes(b"\x07not a model" * 20)
    damaged = replace(artifact, path=path, files=(path, *artifact.files[1:]))
    with pytest.raises(UsageError, match=f"{runtime} cannot load .*{path.name}: \\S+") as caught:
        registry.load(damaged, runtime, threads=1)
    assert len(caught.value.message.splitlines()) == 1
    assert "Exception from" not in caught.value.message


def test_torch_gets_no_torchscript_of_another_digest(small, monkeypatch, tmp_path):
    """It can run code.  What is loaded are the bytes that were looked at, not the file once more."""
    import torch

    from tsexport.runtimes.torch_answers import read_torchscript

    artifact, load = small.artifacts["torchscript"], torch.jit.load
    path = shutil.copy(artifact.path, tmp_path)
    given = replace(artifact, path=Path(path), files=(Path(path),))

    def swap_and_load(source, **options):
        Path(path).write_bytes(b"another")
        return load(source, **options)

    monkeypatch.setattr(torch.jit, "load", swap_and_load)
    registry.load(given, "torchscript", threads=1).close()
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(UsageError, match=r"torchscript cannot load .*: it is not the artifact's file, by its SHA-256"):
        registry.load(given, "torchscript", threads=1)
    with pytest.raises(RuntimeError, match="it cannot be read: Is a directory"):
        read_torchscript(replace(given, path=tmp_path), "cpu")


def test_a_torchscript_file_whose_names_are_no_text(small, tmp_path):
    """torch raises other kinds of errors there than for a file that is cut off."""
    artifact = small.artifacts["torchscript"]
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(artifact.path) as source, zipfile.ZipFile(path, "w") as changed:
        for name in source.namelist():
            content = source.read(name)
            changed.writestr(
                name, content.replace(b"torch", b"\xff\xfe\xff\xfe\xff") if "data.pkl" in name else content
            )
    with pytest.raises(UsageError, match=r"torchscript cannot load .*a\.pt: 'utf-8' codec can't decode"):
        registry.load(replace(artifact, path=path, files=(path,), sha256=""), "torchscript", threads=1)


@EVERY
def test_a_truncated_file(small, tmp_path, runtime, artifact_format):
    artifact = small.artifacts[artifact_format]
    copies = [tmp_path / file.name for file in artifact.files]
    for file, copy in zip(artifact.files, copies, strict=True):
        copy.write_bytes(file.read_bytes())
    copies[-1].write_bytes(artifact.files[-1].read_bytes()[:-40])  # of IR the .bin
    with pytest.raises(UsageError, match=f"{runtime} cannot load"):
        registry.load(replace(artifact, path=copies[0], files=tuple(copies)), runtime, threads=1)


@EVERY
def test_a_missing_file(small, tmp_path, runtime, artifact_format):
    artifact = replace(small.artifacts[artifact_format], path=tmp_path / "gone")
    with pytest.raises(BundleError, match=r"the file .*gone of artifact \w+ does not exist"):
        registry.load(artifact, runtime, threads=1)


def test_a_missing_second_file(small, tmp_path):
    artifact = small.artifacts["openvino"]
    with pytest.raises(BundleError, match=r"small\.bin of artifact"):
        registry.load(replace(artifact, files=(artifact.path, tmp_path / "small.bin")), "openvino", threads=1)


def test_an_operator_that_tract_lacks(onnx_artifact):
    text = f"{IR17} g (float[batch, 4, 4] x) => (float[batch] y) {{ y = Det(x) }}"
    inputs = (TensorSpec("x", "float32", ("batch", 4, 4)),)
    artifact = onnx_artifact(text, inputs, (TensorSpec("y", "float32", ("batch",)),))
    with pytest.raises(
        UsageError, match=r"tract cannot load .*Unimplemented\(Det\) .*: Operator can not be made a Typed"
    ):
        registry.load(artifact, "tract", threads=1)


@pytest.mark.parametrize(("runtime", "artifact_format"), [case for case in CASES if case[1] != "torchscript"])
@pytest.mark.parametrize("kind", ["inputs", "outputs"])
def test_a_name_that_the_file_lacks(small, runtime, artifact_format, kind):
    if (runtime, kind) == ("tract", "outputs"):
        pytest.skip("tract calls outputs after nodes, so they are told apart by place")
    artifact = small.artifacts[artifact_format]
    specs = getattr(artifact, kind)
    renamed = replace(artifact, **{kind: (*specs[:-1], replace(specs[-1], name="nowhere"))})
    with pytest.raises(UsageError, match=f"has no {kind[:-1]} 'nowhere'; its {kind} are"):
        registry.load(renamed, runtime, threads=1)


def test_another_number_of_outputs_in_tract(small):
    artifact = small.artifacts["onnx"]
    fewer = replace(artifact, outputs=(replace(artifact.outputs[0], name="nowhere"),))
    with pytest.raises(UsageError, match="has 2 outputs, expected 1: nowhere"):
        registry.load(fewer, "tract", threads=1)


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_below_one(small, threads):
    with pytest.raises(UsageError, match=f"threads is {threads}; it must be 1 or more"):
        registry.load(small.artifacts["onnx"], "onnxruntime", threads=threads)


@pytest.mark.parametrize(
    ("runtime", "artifact_format", "options", "message"),
    [
        ("onnxruntime", "onnx", ("session.x64quantprecison", "1"), r"did you mean 'session.x64quantprecision'\?"),
        ("openvino", "onnx", ("session.x64quantprecison", "1"), "unknown runtime option"),
        (
            "onnxruntime",
            "onnx",
            ("graph_optimization_level", "al"),
            r"'al' \(did you mean 'all'\?\); allowed are disab",
        ),
        ("openvino", "openvino", ("NUM_STREAMS", "2"), "NUM_STREAMS, which is decided when it is loaded"),
        ("openvino", "openvino", ("INFERENCE_PRECISION_HINT", "bf16"), "is fp32 and has the option .*=bf16; .* f32"),
        ("openvino", "openvino", ("FOO_BAR", "1"), r"openvino cannot load .*Unsupported property FOO_BAR"),
        ("openvino", "openvino", ("DYNAMIC_QUANTIZATION_GROUP_SIZE", "x"), "Wrong value for property key"),
    ],
)
def test_options_that_are_refused(small, runtime, artifact_format, options, message):
    artifact = replace(small.artifacts[artifact_format], options=(options,))
    with pytest.raises(UsageError, match=message) as caught:
        registry.load(artifact, runtime, threads=1)
    # What OpenVINO itself refuses is a load failure; everything else is known to be a configuration before that.
    assert isinstance(caught.value, ConfigurationError) == ("cannot load" not in caught.value.message)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "tract"])
def test_options_of_one_runtime_do_not_reach_another(small, small_feeds, runtime):
    options = (("session.disable_prepacking", "1"), ("DYNAMIC_QUANTIZATION_GROUP_SIZE", "0"))
    with registry.load(replace(small.artifacts["onnx"], options=options), runtime, threads=1) as session:
        actual = session.run(small_feeds(2))
    assert all(c.passed for c in compare_outputs(small.expected(small_feeds(2)), actual, TOLERANCES["fp32-export"]))


def test_options_reach_onnxruntime(small):
    import onnxruntime

    from tsexport.runtimes.onnxruntime import session_options

    options = (("session.x64quantprecision", "1"), ("graph_optimization_level", "disabled"))
    made = session_options(replace(small.artifacts["onnx"], options=options), threads=1, batch=None)
    assert made.get_session_config_entry("session.x64quantprecision") == "1"
    assert made.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    default = session_options(small.artifacts["onnx"], threads=1, batch=None)
    assert default.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL


@pytest.mark.parametrize(
    ("precision", "options", "stated"),
    [
        ("fp32", (), "f32"),
        ("int8", (), "f32"),
        ("bf16", (), "bf16"),
        ("int8", (("INFERENCE_PRECISION_HINT", "bf16"),), "bf16"),
    ],
)
def test_openvino_always_states_its_precision(small, precision, options, stated):
    from tsexport.runtimes.openvino import properties

    made = properties(replace(small.artifacts["openvino"], precision=precision, options=options), threads=1)
    assert made["INFERENCE_PRECISION_HINT"] == stated
