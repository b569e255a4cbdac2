"""config.pbtxt: Triton's own protobuf reads back what was written, whatever the names are."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from triton_backends import check, parse

from tsexport.bundles.triton_config import DATA_TYPES, TritonConfig, TritonTensor, config_text

CONFIG = TritonConfig(
    name="patchtst-cpu",
    backend="onnxruntime",
    platform="onnxruntime_onnx",
    model_file="model.onnx",
    max_batch_size=32,
    inputs=(TritonTensor("features", "TYPE_FP32", (128, 8)), TritonTensor("mask", "TYPE_BOOL", ())),
    outputs=(TritonTensor("forecast", "TYPE_FP32", (1,)),),
    preferred_batch_sizes=(10, 32),
    instances=2,
    kind="KIND_CPU",
    parameters=(("intra_op_thread_count", "2"),),
    warm_up_sizes=(1, 32),
    warm_up_runs=3,
    graph_level=-1,
)


def test_every_field_is_read_back():
    config = check(parse(config_text(CONFIG)))
    assert (config.name, config.backend, config.platform) == ("patchtst-cpu", "onnxruntime", "onnxruntime_onnx")
    assert (config.default_model_filename, config.max_batch_size) == ("model.onnx", 32)
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [
        ("features", 11, [128, 8]),
        ("mask", 1, [1]),
    ]
    assert [t.HasField("reshape") for t in config.input] == [False, True]
    assert list(config.dynamic_batching.preferred_batch_size) == [10, 32]
    (group,) = config.instance_group
    assert (group.count, group.Kind.Name(group.kind)) == (2, "KIND_CPU")
    assert config.optimization.graph.level == -1
    assert {key: value.string_value for key, value in config.parameters.items()} == {"intra_op_thread_count": "2"}
    assert [(one.batch_size, one.count) for one in config.model_warmup] == [(1, 3), (32, 3)]
    assert list(config.model_warmup[0].inputs["features"].dims) == [128, 8]


def test_what_is_not_asked_for_is_not_there():
    config = parse(config_text(replace(CONFIG, preferred_batch_sizes=(), graph_level=None, platform="")))
    assert not config.HasField("dynamic_batching")
    assert not config.HasField("optimization")
    assert config.platform == ""


def test_a_frozen_shape_keeps_its_batch_and_any_size_is_warmed_up_with_one():
    tensors = (TritonTensor("x", "TYPE_INT64", (-1, 4)),)
    config = replace(CONFIG, max_batch_size=0, inputs=tensors, preferred_batch_sizes=(), warm_up_sizes=(1,))
    read = check(parse(config_text(config)))
    assert list(read.input[0].dims) == [-1, 4]
    assert list(read.model_warmup[0].inputs["x"].dims) == [1, 4]


def test_every_dtype_is_one_of_tritons():
    for data_type in DATA_TYPES.values():
        read = parse(config_text(replace(CONFIG, inputs=(TritonTensor("x", data_type, (1,)),))))
        assert read.input[0].data_type != 0
    with pytest.raises(Exception, match="TYPE_FLOAT"):
        parse(config_text(replace(CONFIG, inputs=(TritonTensor("x", "TYPE_FLOAT", (1,)),))))


TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)


@given(name=TEXT, tensor=TEXT, key=TEXT, value=TEXT)
def test_any_text_is_read_back(name, tensor, key, value):
    config = replace(CONFIG, name=name, inputs=(TritonTensor(tensor, "TYPE_FP32", (2,)),), parameters=((key, value),))
    read = parse(config_text(config))
    assert (read.name, read.input[0].name) == (name, tensor)
    assert {key: value.string_value for key, value in read.parameters.items()} == {key: value}
    assert set(read.model_warmup[0].inputs) == {tensor}
