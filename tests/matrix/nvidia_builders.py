"""NVIDIA's builders, where one is installed: TensorRT itself, and TensorRT for RTX.

The latter is a sibling with the same ONNX parser and Python API, which builds engines of strongly typed networks
without a GPU (`pip install tensorrt-rtx`).  What passes with it is evidence about a graph, not claimed of TensorRT.
"""

import importlib
import types

import pytest

DEPRECATIONS = "ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning"  # of timing caches, which do nothing there
SIBLINGS = ("tensorrt_rtx", "tensorrt_rtx_bindings")


def import_builder(name: str) -> types.ModuleType:
    """Return TensorRT, or its sibling under the version of TensorRT whose API it has; skip where there is none."""
    if name == "tensorrt":
        return pytest.importorskip("tensorrt", reason="TensorRT is not installed: nothing here was run with it")
    for module in SIBLINGS:
        try:
            sibling = importlib.import_module(module)
        except ImportError:
            continue
        as_tensorrt = types.ModuleType("tensorrt")
        vars(as_tensorrt).update({**vars(sibling), "__version__": "11.0.0"})
        return as_tensorrt
    return pytest.skip("TensorRT for RTX is not installed")
