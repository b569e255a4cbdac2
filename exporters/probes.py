"""Read every intermediate value of an exported graph: ONNX in ONNX Runtime, IR in OpenVINO.

Nothing is fused while this is done (ONNX Runtime's optimizations are off, and in OpenVINO every value is an output),
so the values are those of the graph as it is written.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino

from tsexport.types import Array, Feeds


@dataclass(frozen=True)
class Probe:
    """One value: its name, the node that made it, and the module path that the node's name tells ("" if none)."""

    name: str
    node: str
    scope: str
    index: int
    value: Array


@dataclass(frozen=True)
class ProbedGraph:
    """The values of a graph in topological order; `parents[i]` are the nodes that node `i` reads."""

    probes: tuple[Probe, ...]
    parents: tuple[tuple[int, ...], ...]

    def ancestors(self, index: int) -> frozenset[int]:
        """Return a node and all nodes that it depends on."""
        seen: set[int] = set()
        waiting = [index]
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting.extend(self.parents[node])
        return frozenset(seen)


def scope_of(node_name: str) -> str:
    """Return the dotted module path in an exported node's name.

    "/encoder/layers.0/linear1/MatMul" -> "encoder.layers.0.linear1"; an nn.Sequential repeats itself:
    "/net/net.1/net.1.0/Relu" -> "net.1.0".
    """
    path = ""
    previous = ""
    for segment in node_name.split("/")[1:-1]:
        if previous and segment.startswith(f"{previous}."):
            path = path[: len(path) - len(previous)] + segment
        else:
            path = f"{path}.{segment}" if path else segment
        previous = segment
    return path


def without_repeats(scope: str) -> str:
    """Return a scope without the counters that repeated calls add: "lin_1" -> "lin"."""
    return re.sub(r"_\d+(?=\.|$)", "", scope)


def probe_onnx(path: Path, feeds: Feeds) -> ProbedGraph:
    """Run an ONNX file with every floating-point value exposed as an output."""
    model = onnx.load(path)
    nodes = model.graph.node
    made_by = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    parents = tuple(tuple({made_by[name] for name in node.input if name in made_by}) for node in nodes)
    float_values = _float_values(model)
    outputs = {output.name for output in model.graph.output}
    wanted = [name for name in made_by if name in float_values or name in outputs]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in outputs)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = session.run(wanted, {name: feeds[name] for name in feeds})
    return ProbedGraph(
        tuple(
            Probe(name, node.name or node.op_type, scope_of(node.name), made_by[name], np.asarray(value))
            for name, value in zip(wanted, values, strict=True)
            if (node := nodes[made_by[name]]).op_type != "Constant"
        ),
        parents,
    )


def _float_values(model: onnx.ModelProto) -> set[str]:
    """Return the values that shape inference finds to be floating point; integers are shapes and codes."""
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
    return {info.name for info in inferred if info.type.tensor_type.elem_type in floats}


def probe_openvino(path: Path, feeds: Feeds, options: tuple[tuple[str, str], ...]) -> ProbedGraph:
    """Run an OpenVINO IR with every floating-point value exposed as an output."""
    core = openvino.Core()
    model = core.read_model(path)
    operations = model.get_ordered_ops()
    position = {operation.get_friendly_name(): index for index, operation in enumerate(operations)}
    parents = tuple(
        tuple({position[value.get_node().get_friendly_name()] for value in operation.input_values()})
        for operation in operations
    )
    own = [result.get_node().input_value(0) for result in model.outputs]
    hidden = [
        port
        for operation in operations
        if operation.get_type_name() not in ("Constant", "Result", "Parameter")
        for port in operation.outputs()
        if port.get_element_type().is_real() and port not in own
    ]
    model.add_outputs(hidden)
    compiled = core.compile_model(model, "CPU", {**dict(options), "INFERENCE_NUM_THREADS": "1"})
    answer = compiled(dict(feeds))
    probes = []
    # added outputs follow the model's own, in the order in which they were added
    for port, output in zip((*own, *hidden), compiled.outputs, strict=True):
        node = port.get_node().get_friendly_name()
        names = sorted(port.get_names())
        # a tensor keeps the name that it had in ONNX, while a transformation may have renamed the operation
        scope = next((found for name in (node, *names) if (found := scope_of(name))), "")
        probes.append(Probe((names or [node])[0], node, scope, position[node], np.array(answer[output])))
    return ProbedGraph(tuple(sorted(probes, key=lambda probe: probe.index)), parents)
