"""Repairs of an exported ONNX graph that change no value: Identity nodes, and what tells of the machine."""

import onnx

from tsexport.types import ModelSpec


def remove_identities(model: onnx.ModelProto) -> int:
    """Remove Identity nodes by letting their consumers read the source; return how many went.

    The TorchScript-based exporter lets equal initializers share one tensor through Identity nodes; ONNX Runtime's
    quantizer then takes those weights for computed values and skips them.  An Identity that writes a graph output
    stays.
    """
    graph = model.graph
    outputs = {output.name for output in graph.output}
    source_of: dict[str, str] = {}
    kept = []
    for node in graph.node:
        if node.op_type == "Identity" and node.domain in ("", "ai.onnx") and node.output[0] not in outputs:
            source_of[node.output[0]] = source_of.get(node.input[0], node.input[0])
        else:
            kept.append(node)
    _rename_inputs(kept, source_of)
    removed = len(graph.node) - len(kept)
    if removed:
        del graph.node[:]
        graph.node.extend(kept)
    stale = [info for info in graph.value_info if info.name in source_of]
    for info in stale:
        graph.value_info.remove(info)
    return removed


def _rename_inputs(nodes: list[onnx.NodeProto], source_of: dict[str, str]) -> None:
    for node in nodes:
        for index, name in enumerate(node.input):
            node.input[index] = source_of.get(name, name)
        for attribute in node.attribute:
            # the bodies of If, Loop and Scan read outer values by name
            if attribute.type == onnx.AttributeProto.GRAPH:
                _rename_inputs(list(attribute.g.node), source_of)


def strip_traces(model: onnx.ModelProto) -> None:
    """Remove documentation strings and metadata: exporters put the machine's source paths and stack traces there."""
    model.ClearField("doc_string")
    model.ClearField("metadata_props")
    graph = model.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def state_output_shapes(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Write the specification's output shapes into the graph where the exporter left a dimension open.

    The exporter follows shapes only so far, and names what it lost ("Addforecast_dim_1").  A dimension that it knows is
    left as it is, so a contradiction is still found; what is written here is proven by running the model.
    """
    for output, wanted in zip(model.graph.output, spec.outputs, strict=False):
        dims = output.type.tensor_type.shape.dim
        if len(dims) != len(wanted.shape):
            continue
        for dim, size in zip(dims, wanted.shape, strict=True):
            if isinstance(size, int) and not dim.HasField("dim_value"):
                dim.dim_value = size
