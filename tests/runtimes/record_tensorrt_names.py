"""Record what TensorRT's Python bindings offer: `python record_tensorrt_names.py MODULE > names.json`.

MODULE is `tensorrt`, or the extension of a bindings wheel that NVIDIA publishes, such as
`tensorrt_bindings.tensorrt`.  The extension needs TensorRT's libraries only when a function is called, so empty
libraries of their names are enough to list what is in it.
"""

import importlib
import json
import sys

CLASSES = (
    *("Builder", "IBuilderConfig", "INetworkDefinition", "IOptimizationProfile", "OnnxParser", "ParserError"),
    *("Runtime", "ICudaEngine", "IExecutionContext", "ITimingCache", "ILogger", "ILayer", "ITensor"),
    *("NetworkDefinitionCreationFlag", "BuilderFlag", "DataType", "MemoryPoolType", "TensorLocation", "LayerType"),
)


def names_of(module) -> dict[str, list[str]]:
    """Return the public names of each class that tsexport uses."""
    return {one: sorted(n for n in dir(getattr(module, one)) if not n.startswith("_")) for one in CLASSES}


if __name__ == "__main__":
    print(json.dumps(names_of(importlib.import_module(sys.argv[1]))))
