"""From a source model to its fp32 artifacts: rewritten where that helps, exported, checked.

The module is rewritten before it is exported, the ONNX graph after it; both prove themselves (see `rewrites.proofs`).
TorchScript keeps an encoder as it is: torch's own fused layer is faster there than plain matrix products.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tsexport.exporters.formats import EXPORT_FORMATS
from tsexport.runtimes.options import FIX_BATCH
from tsexport.types import Artifact, Feeds, ModelSpec, random_feeds

if TYPE_CHECKING:
    from torch import nn

    from tsexport.exporters.rewrites.proofs import Applied

PROBE_BATCHES = (1, 2, 5)
_SEED = 29


@dataclass(frozen=True)
class Converted:
    """An exported artifact, and what was rewritten on the way to it."""

    artifact: Artifact
    rewrites: "tuple[Applied, ...]" = ()


def probes(spec: ModelSpec, real: Feeds | None) -> tuple[Feeds, ...]:
    """Return the feeds by which rewrites prove themselves: random at several batch sizes, and real ones where given."""
    fixed = spec.inputs[0].shape[0]
    batches = (fixed,) if isinstance(fixed, int) else PROBE_BATCHES
    sets: list[Feeds] = [random_feeds(spec.inputs, batch, _SEED + batch) for batch in batches]
    return (*sets, real) if real is not None else tuple(sets)


def convert_to_onnx(
    module: "nn.Module | None", onnx_path: Path | None, spec: ModelSpec, real: Feeds | None, path: Path
) -> Converted:
    """Export a module, or adopt an ONNX file, and make its graph clean.

    Args:
        module: in evaluation mode, or None where the source is `onnx_path`.
        onnx_path: the user's ONNX file, or None.
        spec: inputs and outputs.
        real: a few real samples that rewrites are proven on too.
        path: the .onnx file to write.

    Raises:
        ExportError: no valid opset 17 graph can be made of it.
        ParityError: the export answers otherwise than the module.
    """
    from tsexport.exporters.onnx import export_onnx
    from tsexport.exporters.onnx_adopt import adopt_onnx
    from tsexport.exporters.onnx_external import open_model
    from tsexport.exporters.onnx_file import OPSET, finish_onnx
    from tsexport.exporters.rewrites.encoder import rewrite_encoders
    from tsexport.exporters.rewrites.order import REWRITES
    from tsexport.exporters.rewrites.proofs import rewrite_graph
    from tsexport.exporters.rewrites.spectral import rewrite_spectral

    feeds = probes(spec, real)
    done: tuple[Applied, ...] = ()
    if module is not None:
        module, done = rewrite_encoders(module, feeds)
        module, spectral = rewrite_spectral(module, feeds)
        done = (*done, *spectral)
        plain = export_onnx(module, spec, feeds[1 % len(feeds)], path)
    else:
        assert onnx_path is not None
        plain = adopt_onnx(onnx_path, spec, path)
    if plain.opset != OPSET:  # an adopted file that could not be brought to opset 17 stays as it is
        return Converted(plain)
    model, more = rewrite_graph(open_model(plain.path), feeds, REWRITES)
    done = (*done, *more)
    # Rewrites read the shapes between nodes; runtimes infer them, and in tract they stand against fixing the batch.
    del model.graph.value_info[:]
    steps = (*plain.provenance, *(str(one) for one in done))
    artifact = finish_onnx(model, spec, path, steps)
    if not any(node.op_type in ("Shape", "Size") for node in model.graph.node):
        # Nothing is computed from shapes, so a session of its own for a batch size would gain nothing.
        artifact = replace(artifact, options=((FIX_BATCH, "no"),))
    return Converted(artifact, done)


def convert_to_torchscript(module: "nn.Module", spec: ModelSpec, real: Feeds | None, path: Path) -> Converted:
    """Trace a module (see `exporters.torchscript`), its spectral layers as matrix products."""
    from tsexport.exporters.rewrites.spectral import rewrite_spectral
    from tsexport.exporters.torchscript import export_torchscript

    feeds = probes(spec, real)
    module, done = rewrite_spectral(module, feeds)
    artifact = export_torchscript(module, spec, feeds[1 % len(feeds)], path)
    steps = (*artifact.provenance, *(str(one) for one in done))
    return Converted(replace(artifact, provenance=steps), done)


def convert_to_openvino(onnx: Artifact, path: Path) -> Converted:
    """Convert a clean ONNX artifact to OpenVINO IR."""
    from tsexport.exporters.openvino import export_openvino

    return Converted(export_openvino(onnx, path))


def file_name(format_name: str) -> str:
    """Return the file name of a format's fp32 artifact."""
    return f"model-fp32{EXPORT_FORMATS[format_name].suffix}"  # type: ignore[index]
