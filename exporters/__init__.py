"""Exporters: a torch module becomes TorchScript, ONNX opset 17 or OpenVINO IR, and every file is held against its source."""
