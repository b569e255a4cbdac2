"""Building engines with the real builder and parser, where one is installed.

TensorRT itself, or TensorRT for RTX, its sibling with the same parser and Python API (`pip install tensorrt-rtx`),
which builds without a GPU.  What passes with the sibling is not claimed of TensorRT: the tests' names say which it was.
"""

import types

import onnx
import pytest
from nvidia_builders import DEPRECATIONS, import_builder

from tsexport.runtimes.tensorrt_engine import Complaints, TensorRtFailure, build_engine, make_logger
from tsexport.runtimes.tensorrt_plan import plan_build, plan_profile

pytestmark = pytest.mark.filterwarnings(DEPRECATIONS)


@pytest.fixture(params=[pytest.param("tensorrt", marks=pytest.mark.gpu), "tensorrt_rtx"])
def trt(request) -> types.ModuleType:
    return import_builder(request.param)


def build(trt, artifact, batches=(1, 8), timing_cache=b"", precision="fp32"):
    plan = plan_build(trt.__version__, precision)
    return build_engine(trt, artifact.path, plan, plan_profile(artifact.inputs, batches), 2**28, timing_cache)


def test_an_engine_with_its_profile(trt, small):
    built = build(trt, small.artifacts["onnx"], (4, 1, 8))
    assert built.engine
    logger, complaints = make_logger(trt)
    engine = trt.Runtime(logger).deserialize_cuda_engine(built.engine)
    if engine is None:
        pytest.skip(f"an engine was built, and is not read back without a GPU: {complaints.take()}")
    assert [tuple(shape) for shape in engine.get_tensor_profile_shape("x", 0)] == [(1, 3, 4), (4, 3, 4), (8, 3, 4)]
    names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    assert names == {"x", "ids", "y", "z"}


def test_a_timing_cache_of_another_build_and_a_damaged_one(trt, small):
    first = build(trt, small.artifacts["onnx"])
    assert build(trt, small.artifacts["onnx"], timing_cache=first.timing_cache).engine
    assert build(trt, small.artifacts["onnx"], timing_cache=b"no timing cache").engine


def test_a_node_that_the_parser_refuses_is_named(trt, small, tmp_path):
    model = onnx.load(small.artifacts["onnx"].path)
    next(node for node in model.graph.node if node.op_type == "Tanh").CopyFrom(
        onnx.helper.make_node("Foo", ["h"], ["y"], name="/head/foo", domain="com.acme")
    )
    model.opset_import.append(onnx.helper.make_opsetid("com.acme", 1))
    onnx.save(model, tmp_path / "foreign.onnx")
    artifact = types.SimpleNamespace(path=tmp_path / "foreign.onnx", inputs=small.artifacts["onnx"].inputs)
    with pytest.raises(TensorRtFailure, match=r"the ONNX parser refuses foreign\.onnx: .*/head/foo.*Plugin not found"):
        build(trt, artifact)


def test_a_file_that_is_no_onnx(trt, small, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no protobuf at all")
    artifact = types.SimpleNamespace(path=tmp_path / "broken.onnx", inputs=small.artifacts["onnx"].inputs)
    with pytest.raises(TensorRtFailure, match=r"the ONNX parser refuses broken\.onnx: .+"):
        build(trt, artifact)


def test_a_profile_that_does_not_fit_the_network(trt, small):
    """The second input's batch is held to another range than the first's, which the network cannot have."""
    artifact = small.artifacts["onnx"]
    rows = plan_profile(artifact.inputs, (1, 8))
    backwards = tuple(type(row)(row.name, row.largest, row.best, row.smallest) for row in rows)
    with pytest.raises((TensorRtFailure, ValueError)):
        build_engine(trt, artifact.path, plan_build(trt.__version__, "fp32"), backwards, 2**28, b"")


def test_complaints_are_told_once_and_as_one_line():
    complaints = Complaints()
    assert complaints.take() == "TensorRT gave no reason"
    for line in ("[E] out of\n memory", "[E] out of\n memory", "second"):
        complaints.add(line)
    assert complaints.take() == "[E] out of memory; second"
    for number in range(200):
        complaints.add(str(number))
    assert len(complaints.lines) == 50
    assert complaints.take().endswith("199")
