"""The datatypes of the Open Inference Protocol, and numpy's names for them.

BYTES is left out: no artifact has tensors of text.  BF16 has no numpy type, and artifacts in bf16 take and give FP32.
"""

from tsexport.types import TensorSpec

BINARY_DATA_SIZE = "binary_data_size"
DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
VARIABLE = -1
"""How the protocol writes a dimension that is free."""


def datatype_of(spec: TensorSpec) -> str:
    """Return the protocol's name of a tensor's type, for example "FP32"."""
    return DATATYPES[spec.dtype]


def shape_of(spec: TensorSpec) -> list[int]:
    """Return the protocol's shape: -1 for the batch."""
    return [VARIABLE if isinstance(dim, str) else dim for dim in spec.shape]


def describe(spec: TensorSpec) -> str:
    """Return a tensor as "features FP32 [-1, 128, 8]"."""
    return f"{spec.name} {datatype_of(spec)} {shape_of(spec)}"
