"""A torch module becomes TorchScript, ONNX opset 17 and OpenVINO IR, each held against its source.

formats                  the table: who writes a format, its runtimes, its tolerance
conversion               from a source model to its fp32 artifacts: rewritten, exported, checked
torchscript, onnx, openvino    one exporter each
onnx_adopt, onnx_dynamo, onnx_lowering, onnx_cleanup, onnx_file    the ways to a true opset 17
rewrites                 what makes a graph fast, each proving itself
checks, probes, localise     parity, and the first layer that departs
qdq_regions, qdq_pairs, qdq_rules    where Q/DQ pairs for TensorRT may stand, and the rules they are held to
device_table, device_facts, device_check    whether a TensorRT version takes an ONNX file, node by node
"""
