"""Exporters: a torch module becomes TorchScript, ONNX opset 17 or OpenVINO IR, each held against its source."""
