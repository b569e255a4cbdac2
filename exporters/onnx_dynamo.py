"""The second way to ONNX: `torch.onnx.export(dynamo=True)`, for what the TorchScript-based exporter cannot hold.

Asked for opset 17 it gives 18 and says so on stderr only; so it is asked for 18, and the graph is brought down here.
Node names are made like those of the other exporter ("/encoder/layers.0/linear1/MatMul"), so that a departing layer
can be named.
"""

import ast
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from torch import nn

from tsexport.errors import ExportError, reason_of
from tsexport.exporters.onnx_external import is_large
from tsexport.exporters.onnx_lowering import lower_to_opset17
from tsexport.types import BATCH, ModelSpec

_SCOPES = "pkg.torch.onnx.name_scopes"


def export_with_dynamo(
    module: nn.Module, spec: ModelSpec, tensors: tuple[torch.Tensor, ...]
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return an opset 17 model and what had to be repaired in it.

    Raises:
        ExportError: `torch.export` cannot capture the module with a dynamic batch, or opset 17 cannot hold its
        operators.
    """
    batch = torch.export.Dim(BATCH)
    shapes = tuple({0: batch} if isinstance(tensor.shape[0], str) else None for tensor in spec.inputs)
    with warnings.catch_warnings(), _quiet_registration():
        # torch 2.13's own use of a deprecated pytree function
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        try:
            program = torch.onnx.export(
                module,
                tensors,
                None,
                dynamo=True,
                opset_version=18,
                input_names=[tensor.name for tensor in spec.inputs],
                output_names=[tensor.name for tensor in spec.outputs],
                dynamic_shapes=shapes,
                verbose=False,
            )
        except Exception as error:  # torch.export raises dozens of types from its internals
            raise ExportError(f"torch.export: {reason_of(error.__cause__ or error)}") from error
    assert program is not None
    model = program.model_proto
    if is_large(model):
        raise ExportError("torch.export: what it gives is repaired as one file, and the weights are too many for one")
    _name_by_scope(model.graph)
    repairs = lower_to_opset17(model)
    del model.graph.value_info[:]
    return model, repairs


def _name_by_scope(graph: onnx.GraphProto) -> None:
    used: Counter[str] = Counter()
    for node in graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == _SCOPES), "['', '']")
        # "['', 'e', 'e.layers.0', 'linear']": the modules from the outside in, then the operation
        modules = [scope for scope in ast.literal_eval(scopes)[1:-1] if scope]
        path, outer = "", ""
        for scope in modules:
            path += "/" + scope.removeprefix(f"{outer}.")
            outer = scope
        base = f"{path}/{node.op_type}"
        node.name = f"{base}_{used[base]}" if used[base] else base
        used[base] += 1


@contextmanager
def _quiet_registration() -> Iterator[None]:
    """Keep "torchvision is not installed" off stderr: a forecasting model needs none of its operators."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
