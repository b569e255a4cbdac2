"""Which artifacts `triton/` serves, and how their settings, batches and names become Triton's."""

from dataclasses import replace

import pytest
from triton_backends import check, check_model, parse

from tsexport.bundles.manifest import ArtifactEntry, FileDigest, GoldenTolerance, RankedArtifact
from tsexport.bundles.triton import model_name, served_models, write_repository
from tsexport.bundles.triton_config import config_text
from tsexport.models.registry import list_entries
from tsexport.models.sources import identify
from tsexport.targets import parse_target
from tsexport.types import TensorSpec

X = TensorSpec("x", "float32", ("batch", 4))
Y = TensorSpec("y", "float32", ("batch", 3))
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "torchscript": "torchscript"}
SUFFIXES = {"onnx": (".onnx",), "openvino": (".xml", ".bin"), "torchscript": (".pt",)}


def entry(name, artifact_format="onnx", precision="fp32", *, inputs=(X,), outputs=(Y,), suffixes=(), **changes):
    files = tuple(FileDigest(f"artifacts/{name}{s}", "a" * 64, 1) for s in suffixes or SUFFIXES[artifact_format])
    made = ArtifactEntry(
        name=name, path=files[0].path, files=files, format=artifact_format, precision=precision, opset=None,
        size_bytes=len(files), sha256="a" * 64, inputs=inputs, outputs=outputs, runtimes=(RUNTIMES[artifact_format],),
        options=(), provenance=(), golden_tolerance=GoldenTolerance("t", "t", 1.0, 1.0),
    )  # fmt: skip
    return replace(made, **changes)


ONNX, OPENVINO, TORCHSCRIPT = entry("onnx-fp32"), entry("ov", "openvino"), entry("ts", "torchscript")


@pytest.fixture
def served(bundle):
    """Return a function that says what is served where the first of some entries is selected."""

    def serve(*entries, runtime=None, order=(), target="cpu4-fp32", device="avx2", batches=(1, 8), **changes):
        first = entries[0]
        runtime = runtime or first.runtimes[0]
        ranked = tuple(RankedArtifact(one.name, one.runtimes[0]) for one in order or entries)
        manifest = replace(
            bundle.manifest, artifacts=entries, target=parse_target(target, device),
            selected=replace(bundle.manifest.selected, artifact=first.name, runtime=runtime), **changes,
        )  # fmt: skip
        selection = replace(
            bundle.selection, artifact=first.name, runtime=runtime, order=ranked, triton_batch_sizes=batches, threads=2
        )
        return served_models(manifest, selection)

    return serve


def parameters(model):
    return dict(model.config.parameters)


# --- backends --------------------------------------------------------------------------------------------------------


def test_onnx_is_served_by_onnx_runtime(served):
    (model,) = served(ONNX, OPENVINO, TORCHSCRIPT)
    config = check(parse(config_text(model.config)))
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "onnxruntime", 8)
    assert list(config.dynamic_batching.preferred_batch_size) == [8]
    assert config.instance_group[0].count == 2  # 4 cores, 2 threads each
    assert config.instance_group[0].Kind.Name(config.instance_group[0].kind) == "KIND_CPU"
    assert parameters(model) == {"intra_op_thread_count": "2", "inter_op_thread_count": "1", "execution_mode": "0"}
    assert model.files == (("artifacts/onnx-fp32.onnx", "model.onnx"),)
    assert model.tensors == (("x", "x"), ("y", "y"))
    assert [(one.batch_size, one.count) for one in config.model_warmup] == [(1, 1), (8, 1)]


def test_openvino_has_a_stream_an_instance_and_pads_batches(served):
    model, beside = served(OPENVINO, TORCHSCRIPT, ONNX)
    assert model.config.backend == "openvino"
    assert model.files == (("artifacts/ov.xml", "model.xml"), ("artifacts/ov.bin", "model.bin"))
    assert parameters(model) == {
        "INFERENCE_NUM_THREADS": "4", "NUM_STREAMS": "2", "PERFORMANCE_HINT": "LATENCY", "ENABLE_BATCH_PADDING": "YES",
    }  # fmt: skip
    assert model.not_given == ("INFERENCE_PRECISION_HINT=f32",)
    assert (beside.config.name, beside.artifact.name, beside.not_given) == ("tiny-onnxruntime", "onnx-fp32", ())
    for one in (model, beside):
        check(parse(config_text(one.config)))


def test_an_onnx_file_on_openvino_keeps_its_format(served):
    model, *_ = served(entry("q", runtimes=("openvino",)), ONNX)
    assert (model.config.backend, model.config.model_file) == ("openvino", "model.onnx")


def test_bf16_on_openvino_is_stated(served):
    (model,) = served(entry("b", "openvino", "bf16", options=(("INFERENCE_PRECISION_HINT", "bf16"),)), ONNX)
    assert parameters(model)["HINT_BF16"] == "YES"
    assert model.not_given == ()


def test_torchscript_has_numbered_names_and_is_warmed_up_three_times(served):
    two = (X, TensorSpec("mask", "bool", ("batch",)))
    (model,) = served(entry("ts", "torchscript", inputs=two), ONNX)
    config = check(parse(config_text(model.config)))
    assert (config.backend, config.default_model_filename) == ("pytorch", "model.pt")
    assert [tensor.name for tensor in (*config.input, *config.output)] == ["INPUT__0", "INPUT__1", "OUTPUT__0"]
    assert model.tensors == (("x", "INPUT__0"), ("mask", "INPUT__1"), ("y", "OUTPUT__0"))
    assert [one.count for one in config.model_warmup] == [3, 3]


@pytest.mark.parametrize(("level", "number"), [("basic", -1), ("extended", 1), ("disabled", 2), ("all", None)])
def test_the_graph_level_of_onnx_runtime_is_given(served, level, number):
    (model,) = served(entry("q", options=(("graph_optimization_level", level), ("fix_batch", "no"))))
    assert (model.config.graph_level, model.not_given) == (number, ())


def test_what_a_backend_cannot_be_given_is_said_and_another_artifact_is_served_beside_it(served):
    quantized = entry("q", precision="int8", options=(("session.disable_quant_qdq", "1"),))
    model, beside = served(quantized, TORCHSCRIPT, ONNX)
    assert model.not_given == ("session.disable_quant_qdq=1",)
    assert beside.artifact.name == "onnx-fp32"
    (alone,) = served(quantized)
    assert alone.not_given
    _, torchscript = served(quantized, TORCHSCRIPT)
    assert torchscript.config.name == "tiny-pytorch"


def test_a_runtime_without_a_backend_leaves_the_fastest_of_the_others(served):
    (model,) = served(
        replace(ONNX, runtimes=("tract", "onnxruntime")), TORCHSCRIPT, runtime="tract", order=(TORCHSCRIPT,)
    )
    assert (model.config.name, model.runtime) == ("tiny", "torchscript")
    assert served(replace(ONNX, runtimes=("tract",))) == ()


@pytest.mark.parametrize(
    ("one", "dtype"),
    [(TORCHSCRIPT, "bfloat16"), (OPENVINO, "float64"), (ONNX, "complex64")],
    ids=lambda value: str(value)[:9],
)
def test_a_dtype_that_a_backend_does_not_have(served, one, dtype):
    assert served(replace(one, inputs=(replace(X, dtype=dtype),))) == ()


def test_openvinos_backend_takes_no_scalars(served):
    assert served(replace(OPENVINO, outputs=(Y, TensorSpec("loss", "float32", ())))) == ()


def test_weights_in_a_second_file_keep_the_name_that_the_graph_holds(served):
    (model,) = served(entry("onnx-fp32", suffixes=(".onnx", ".data")))
    assert model.files[1] == ("artifacts/onnx-fp32.data", "onnx-fp32.data")


# --- batches ---------------------------------------------------------------------------------------------------------


def test_answers_that_depend_on_the_batch_are_given_one_by_one(served):
    (model,) = served(entry("d", precision="int8", batch_dependent=True), ONNX)
    config = check(parse(config_text(model.config)))
    assert config.max_batch_size == 1  # with more, Triton's backends gather requests by themselves
    assert not config.HasField("dynamic_batching")
    assert [one.batch_size for one in config.model_warmup] == [1]


def test_a_batch_of_one_alone_gathers_nothing(served):
    (model,) = served(ONNX, batches=(1,))
    assert (model.config.max_batch_size, model.config.preferred_batch_sizes) == (1, ())


@pytest.mark.parametrize("shape", [(2, 4), (), ("batch", 4)])
def test_a_frozen_batch_stays_in_the_shape(served, shape):
    y = TensorSpec("y", "float32", (2, 3))
    (model,) = served(entry("f", inputs=(TensorSpec("x", "float32", shape),), outputs=(y,)))
    config = check(parse(config_text(model.config)))
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [-1 if dim == "batch" else dim for dim in shape] or [1]
    assert list(config.output[0].dims) == [2, 3]
    assert not config.HasField("dynamic_batching")


# --- engines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "device"), [("jetson-fp16", "orin-nano@jetpack-6.2"), ("a100-fp32", None), ("t4-fp16", "@tensorrt-8.6")]
)
def test_an_engine_is_configured_and_left_to_the_device(served, target, device):
    (model,) = served(ONNX, TORCHSCRIPT, target=target, device=device or "host")
    config = check(parse(config_text(model.config)))
    assert (config.backend, config.platform) == ("tensorrt", "tensorrt_plan")
    assert config.default_model_filename == "model.plan"
    assert config.instance_group[0].Kind.Name(config.instance_group[0].kind) == "KIND_GPU"
    assert model.files == ()


@pytest.mark.parametrize(("device", "data_type"), [("@tensorrt-8.6", "TYPE_INT32"), ("@tensorrt-10.3", "TYPE_INT64")])
def test_int64_is_int32_before_tensorrt_9(served, device, data_type):
    calendar = TensorSpec("calendar", "int64", ("batch", 4))
    (model,) = served(entry("onnx-fp32", inputs=(calendar,)), target="a100-fp32", device=device)
    assert model.config.inputs[0].data_type == data_type


def test_a_gpu_bundle_without_a_graph_has_no_repository(served):
    assert served(TORCHSCRIPT, target="a100-fp32", device="host") == ()


# --- every registered model, and the files ---------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["cpu4-fp32", "a100-fp32"])
@pytest.mark.parametrize("artifact_format", RUNTIMES)
@pytest.mark.parametrize("name", [one.name for one in list_entries()])
def test_the_configuration_of_every_registered_model_is_valid(served, bundle, name, artifact_format, target):
    """In its default size.  tests/matrix/test_triton.py opens real artifacts."""
    identity = identify(name)
    found = entry("e", artifact_format, inputs=identity.tensors.inputs, outputs=identity.tensors.outputs)
    device = "avx2" if target == "cpu4-fp32" else "host"
    models = served(found, target=target, device=device, model=replace(bundle.manifest.model, name=name))
    assert bool(models) == (target == "cpu4-fp32" or artifact_format == "onnx")
    for model in models:
        config = check(parse(config_text(model.config)))
        assert config.name == name
        for tensors, specs in ((config.input, identity.tensors.inputs), (config.output, identity.tensors.outputs)):
            assert [list(tensor.dims) for tensor in tensors] == [list(spec.shape[1:]) or [1] for spec in specs]


@pytest.mark.parametrize(
    ("name", "component", "expected"),
    [
        ("patchtst-cpu", None, "patchtst-cpu"),
        ("hrm-27m", "h-module", "hrm-27m-h-module"),
        ("my model/é", None, "my_model__"),
        (".hidden", None, "_hidden"),
    ],
)
def test_the_name_of_the_folder(bundle, name, component, expected):
    manifest = bundle.manifest
    assert model_name(replace(manifest, model=replace(manifest.model, name=name, component=component))) == expected


def test_the_repository_holds_the_artifacts_bytes(bundle):
    served = write_repository(bundle.path, bundle.manifest, bundle.selection)
    folder = bundle.path / "triton" / "tiny"
    config = check_model(folder)
    assert config.max_batch_size == 1  # int8 with dynamic ranges
    assert (folder / "1/model.onnx").read_bytes() == bundle.artifact("int8-onnx").path.read_bytes()
    readme = (bundle.path / "triton/README.md").read_text()
    assert "an answer depends on the other rows" in readme
    assert [one.config.name for one in served] == ["tiny"]
