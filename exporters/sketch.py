"""The ONNX graph that a build would export, in memory and unproven: for counting, never for running.

The same exporter and the same rewrites as a build's (`exporters.conversion`), but no rewrite is proven, nothing is
compared with the module, and no file is left: seconds where a build takes minutes.  A rewrite that would fail its proof
is part of the sketch all the same; one after which shapes cannot be inferred is taken back.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from torch import nn

from tsexport.exporters.conversion import COSTLY_BATCHES
from tsexport.exporters.onnx import graph_of
from tsexport.exporters.onnx_cleanup import remove_identities, strip_traces
from tsexport.exporters.onnx_external import external_tensors, open_model
from tsexport.exporters.onnx_file import OPSET
from tsexport.exporters.rewrites.modules import copied
from tsexport.exporters.rewrites.order import MODULE_REWRITES, REWRITES
from tsexport.exporters.tracing import evaluating, mha_fastpath
from tsexport.types import Feeds, ModelSpec, random_feeds

_SEED = 31


def sketch_module(module: nn.Module, spec: ModelSpec) -> onnx.ModelProto:
    """Return the graph of a module, its weights within it.

    Raises:
        ExportError: no exporter can hold the module in opset 17, or its weights are too many for one file.
    """
    probes = _probes(spec)
    with evaluating(module), tempfile.TemporaryDirectory(prefix="tsexport-sketch-") as folder:
        for rewrite in MODULE_REWRITES:
            if rewrite.requires(module):
                module = rewrite.call(copied(module), probes)[0]
        with mha_fastpath(False):
            model = graph_of(module, spec, probes[-1], Path(folder))
        remove_identities(model)
        strip_traces(model)
        return _rewritten(model, probes)


def sketch_file(path: Path, spec: ModelSpec) -> onnx.ModelProto:
    """Return the graph of an ONNX file, rewritten as a build would where its opset is 17.

    Raises:
        ExportError: it refers to a file that does not lie beside it.
    """
    model = open_model(path)
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    return _rewritten(model, _probes(spec)) if opset == OPSET else model


def _probes(spec: ModelSpec) -> tuple[Feeds, ...]:
    fixed = spec.inputs[0].shape[0]
    batches = (fixed,) if isinstance(fixed, int) else COSTLY_BATCHES
    return tuple(random_feeds(spec.inputs, batch, _SEED) for batch in batches)


def _rewritten(model: onnx.ModelProto, probes: Sequence[Feeds]) -> onnx.ModelProto:
    if external_tensors(model):
        return model  # above 2 GiB: shapes are all that is wanted, and rewriting would read every weight
    for rewrite in REWRITES:
        graph = ir.from_proto(model)
        if not rewrite.requires(graph) or not rewrite.call(graph, probes):
            continue
        candidate = ir.to_proto(graph)
        del candidate.graph.value_info[:]
        try:
            onnx.shape_inference.infer_shapes(candidate, strict_mode=True)
        except (onnx.shape_inference.InferenceError, RuntimeError):
            continue
        model = candidate
    del model.graph.value_info[:]
    return model
