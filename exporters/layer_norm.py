"""LayerNormalization written out as its parts, for runtimes that do not know the operator.

    d = x - mean(x)
    y = d / sqrt(mean(d^2) + epsilon) * scale + bias

with means over the axes from `axis` on.  The operator came with opset 17; TensorRT knows it from 8.6 on, and computes
it in fp32 whatever the graph's type.  Written out, the parts are what the graph says, so in fp16 they are kept in fp32
(see `quantize.islands`).

Source: https://onnx.ai/onnx/operators/onnx__LayerNormalization.html
"""

import numpy as np
import onnx_ir as ir

from tsexport.exporters.rewrites.parts import Parts, dimensions, type_of


def write_layer_norm_out(parts: Parts) -> bool:
    """Replace one LayerNormalization of fp32 by its parts.

    Returns False, and changes nothing, where the rank of its input is not known or its mean or deviation is read.
    """
    node = parts.node
    x, scale, bias = (parts.given(index) for index in range(3))
    places = dimensions(x)
    read = any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
    if places is None or read or type_of(x) != ir.DataType.FLOAT:
        return False
    axes = list(range(parts.number("axis", -1) % len(places), len(places)))
    epsilon = parts.constant("epsilon", np.array(node.attributes.get_float("epsilon", 1e-5), np.float32))
    over = {"axes": axes, "keepdims": 1}
    centred = parts.add("Sub", "centred", [x, parts.add("ReduceMean", "mean", [x], over)])
    square = parts.add("Mul", "square", [centred, centred])
    shifted = parts.add("Add", "shifted", [parts.add("ReduceMean", "variance", [square], over), epsilon])
    result = parts.add("Div", "normalised", [centred, parts.add("Sqrt", "deviation", [shifted])])
    if scale is not None:
        result = parts.add("Mul", "scaled", [result, scale])
    if bias is not None:
        result = parts.add("Add", "biased", [result, bias])
    return parts.replace(result)
