"""Every name of TensorRT that tsexport uses is in the bindings that NVIDIA published: 8.6.1, 10.3.0 and 11.4.0.

`data/tensorrt_names.json` was recorded from those wheels by `record_tensorrt_names.py`.  It says that a name is there,
not that a call does what its documentation says: that takes a GPU.
"""

import ast
import json
from pathlib import Path

import pytest

from tsexport.runtimes.tensorrt_plan import NODE_NAMES_FROM, STRONGLY_TYPED_FROM, plan_build

HERE = Path(__file__).parent
NAMES: dict[str, dict[str, list[str]]] = json.loads((HERE / "data" / "tensorrt_names.json").read_text())
SOURCES = [HERE.parents[1] / "runtimes" / name for name in ("tensorrt.py", "tensorrt_engine.py")]
USED = {
    "Builder": "build_serialized_network create_builder_config create_network create_optimization_profile",
    "IBuilderConfig": "add_optimization_profile clear_flag create_timing_cache get_timing_cache set_flag "
    "set_memory_pool_limit set_timing_cache",
    "ICudaEngine": "create_execution_context get_tensor_dtype get_tensor_location get_tensor_name num_io_tensors",
    "IExecutionContext": "execute_async_v3 get_tensor_shape set_input_shape set_tensor_address",
    "ILayer": "get_output num_outputs type",
    "ILogger": "Severity log",
    "INetworkDefinition": "get_layer num_layers",
    "IOptimizationProfile": "set_shape",
    "ITensor": "dtype",
    "ITimingCache": "serialize",
    "OnnxParser": "get_error num_errors parse_from_file",
    "ParserError": "desc node",
    "Runtime": "deserialize_cuda_engine",
    "DataType": "FLOAT name",
    "LayerType": "CAST CONSTANT IDENTITY SHAPE",
    "MemoryPoolType": "WORKSPACE",
    "TensorLocation": "DEVICE",
}
ONLY_BEFORE_STRONG_TYPES = {"ILayer": "precision set_output_type"}
ONLY_WITH_NODE_NAMES = {"ParserError": "node_name node_operator"}
NOT_TENSORRTS = {"INTERNAL_ERROR", "ERROR", "log", "shape", "engine", "name", "Severity"}
"""Attributes of numpy, of our own or of an enumeration inside a class."""


def key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def missing(version: str, used: dict[str, str]) -> list[str]:
    return [
        f"{kind}.{name}" for kind, names in used.items() for name in names.split() if name not in NAMES[version][kind]
    ]


@pytest.mark.parametrize("version", NAMES)
def test_every_name_is_in_the_bindings(version):
    assert missing(version, USED) == []
    if key(version) < key(STRONGLY_TYPED_FROM):
        assert missing(version, ONLY_BEFORE_STRONG_TYPES) == []
    if key(version) >= key(NODE_NAMES_FROM):
        assert missing(version, ONLY_WITH_NODE_NAMES) == []


@pytest.mark.parametrize("version", NAMES)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_every_flag_of_a_plan_is_in_the_bindings(version, precision):
    plan = plan_build(version, precision)
    assert set(plan.network) <= set(NAMES[version]["NetworkDefinitionCreationFlag"])
    assert {*plan.set, *plan.cleared} <= set(NAMES[version]["BuilderFlag"])


def test_the_versions_differ_where_the_plan_says():
    assert "STRONGLY_TYPED" not in NAMES["8.6.1"]["NetworkDefinitionCreationFlag"]
    assert "EXPLICIT_BATCH" not in NAMES["11.4.0"]["NetworkDefinitionCreationFlag"]
    assert not {"FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"} & set(NAMES["11.4.0"]["BuilderFlag"])
    assert "INT64" not in NAMES["8.6.1"]["DataType"]
    assert "precision" not in NAMES["11.4.0"]["ILayer"]


def test_the_table_holds_every_name_that_the_sources_use():
    members = {name for kinds in NAMES.values() for names in kinds.values() for name in names} - NOT_TENSORRTS
    found = {
        node.attr
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    told = {
        name
        for used in (USED, ONLY_BEFORE_STRONG_TYPES, ONLY_WITH_NODE_NAMES)
        for names in used.values()
        for name in names.split()
    }
    assert found & members <= told
    assert told - NOT_TENSORRTS <= found, "a name that is used no more"
