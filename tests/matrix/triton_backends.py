"""What Triton would make of a model repository, as far as it can be said without a server.

`parsed` reads a config.pbtxt by Triton's own protobuf and repeats the rules of its core; `check_model` opens the model
files as the backends do and compares what they find with the configuration, as they do before they accept a model.
Sources: triton-inference-server/core, src/model_config_utils.cc; the `ValidateInputs` and `ValidateOutputs` of
onnxruntime_backend and openvino_backend; pytorch_backend, src/pt/model_instance_state.cc.
"""

import warnings
from pathlib import Path

import numpy as np

PLATFORMS = {
    "onnxruntime": "onnxruntime_onnx",
    "tensorrt": "tensorrt_plan",
    "pytorch": "pytorch_libtorch",
    "openvino": "",
}
ORT_TYPES = {"tensor(float)": "TYPE_FP32", "tensor(int64)": "TYPE_INT64", "tensor(bool)": "TYPE_BOOL",
             "tensor(float16)": "TYPE_FP16", "tensor(int32)": "TYPE_INT32", "tensor(double)": "TYPE_FP64"}  # fmt: skip
OPENVINO_TYPES = {"f32": "TYPE_FP32", "i64": "TYPE_INT64", "boolean": "TYPE_BOOL", "i32": "TYPE_INT32"}
NUMPY = {"TYPE_FP32": "float32", "TYPE_INT64": "int64", "TYPE_BOOL": "bool", "TYPE_FP16": "float16",
         "TYPE_INT32": "int32", "TYPE_FP64": "float64"}  # fmt: skip


def parsed(path: Path):
    """Return a config.pbtxt as Triton's protobuf, held against the rules of Triton's core."""
    return check(parse(path.read_text(encoding="utf-8")))


def parse(text: str):
    """Return the message that a config.pbtxt's text holds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of protobuf's about the age of generated code
        from tritonclient.grpc import model_config_pb2
    from google.protobuf import text_format

    return text_format.Parse(text, model_config_pb2.ModelConfig())


def check(config):
    """Return a configuration that Triton's core would take."""
    assert config.name
    assert config.platform == PLATFORMS[config.backend]
    assert config.max_batch_size >= 0
    for tensor in (*config.input, *config.output):
        assert tensor.name
        assert tensor.data_type
        assert tensor.dims
        assert all(dim >= 1 or dim == -1 for dim in tensor.dims)
        if tensor.HasField("reshape"):
            assert config.max_batch_size > 0
            assert (list(tensor.dims), list(tensor.reshape.shape)) == ([1], [])
    names = [tensor.name for tensor in (*config.input, *config.output)]
    assert len(set(names)) == len(names)
    for size in config.dynamic_batching.preferred_batch_size:
        assert 0 < size <= config.max_batch_size
    (group,) = config.instance_group
    assert group.count >= 1
    for sample in config.model_warmup:
        assert 1 <= sample.batch_size <= max(1, config.max_batch_size)
        assert set(sample.inputs) == {tensor.name for tensor in config.input}
        for tensor in config.input:
            value = sample.inputs[tensor.name]
            assert value.data_type == tensor.data_type
            assert [dim if dim > 0 else 1 for dim in tensor.dims] == list(value.dims)
            assert value.zero_data
    return config


def type_name(tensor) -> str:
    return tensor.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[tensor.data_type].name


def shape_of(tensor, config) -> list[int]:
    """Return a tensor's whole shape, with -1 for the batch."""
    dims = list(tensor.reshape.shape) if tensor.HasField("reshape") else list(tensor.dims)
    return [-1, *dims] if config.max_batch_size else dims


def check_model(folder: Path):
    """Open a model folder's version 1 as its backend does; return the parsed configuration."""
    config = parsed(folder / "config.pbtxt")
    assert config.name == folder.name
    path = folder / "1" / config.default_model_filename
    {"onnxruntime": _check_onnx, "openvino": _check_openvino, "pytorch": _check_torchscript}[config.backend](
        path, config
    )
    return config


def _check_onnx(path, config):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for found, given in ((session.get_inputs(), config.input), (session.get_outputs(), config.output)):
        assert [node.name for node in found] == [tensor.name for tensor in given]
        for node, tensor in zip(found, given, strict=True):
            assert ORT_TYPES[node.type] == type_name(tensor)
            assert [dim if isinstance(dim, int) else -1 for dim in node.shape] == shape_of(tensor, config)


def _check_openvino(path, config):
    import openvino

    model = openvino.Core().read_model(path)
    for port, tensor in zip(model.inputs, config.input, strict=True):
        assert tensor.name in port.get_names()
        assert OPENVINO_TYPES[port.element_type.get_type_name()] == type_name(tensor)
    if config.max_batch_size:
        for node in model.get_parameters():
            node.set_layout(openvino.Layout("N..."))
        openvino.set_batch(model, config.max_batch_size)
    for ports, given in ((model.inputs, config.input), (model.outputs, config.output)):
        for port, tensor in zip(ports, given, strict=True):
            assert tensor.name in port.get_names()
            first, *rest = shape_of(tensor, config)
            first = config.max_batch_size or first
            found = [dim.get_length() if dim.is_static else -1 for dim in port.partial_shape]
            assert found == [first, *rest]


def _check_torchscript(path, config):
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", DeprecationWarning)
        module = torch.jit.load(str(path), map_location="cpu").eval()
    assert [tensor.name for tensor in config.input] == [f"INPUT__{index}" for index in range(len(config.input))]
    assert [tensor.name for tensor in config.output] == [f"OUTPUT__{index}" for index in range(len(config.output))]
    assert len(module.forward.schema.arguments) - 1 == len(config.input)
    batch = min(3, config.max_batch_size) or 1
    shapes = [[batch if dim == -1 else dim for dim in shape_of(tensor, config)] for tensor in config.input]
    feeds = [torch.from_numpy(np.zeros(shape, NUMPY[type_name(tensor)]))
             for shape, tensor in zip(shapes, config.input, strict=True)]  # fmt: skip
    with torch.inference_mode():
        answer = module(*feeds)
    answers = [answer] if isinstance(answer, torch.Tensor) else list(answer)
    for found, tensor in zip(answers, config.output, strict=True):
        assert list(found.shape) == [batch if dim == -1 else dim for dim in shape_of(tensor, config)]
        assert str(found.numpy().dtype) == NUMPY[type_name(tensor)]
