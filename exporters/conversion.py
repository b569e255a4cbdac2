"""From a source model to its fp32 artifacts: rewritten where that helps, exported, checked.

The module is rewritten before it is exported, the ONNX graph after it; both prove themselves (see `rewrites.proofs`).
Every conversion can leave rewrites out by name: which ones is decided by measuring, in `tsexport.stages.rewriting`.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tsexport.exporters.cost import COSTLY_FLOPS, flops_of
from tsexport.exporters.formats import EXPORT_FORMATS
from tsexport.runtimes.options import FIX_BATCH
from tsexport.types import Artifact, Feeds, ModelSpec, random_feeds

if TYPE_CHECKING:
    from torch import nn

    from tsexport.exporters.rewrites.proofs import Applied

PROBE_BATCHES = (1, 2, 5)
COSTLY_BATCHES = (1, 2)
_SEED = 29


@dataclass(frozen=True)
class Converted:
    """An exported artifact, what was rewritten on the way to it, and its nodes, where it is a graph that has any."""

    artifact: Artifact
    rewrites: "tuple[Applied, ...]" = ()
    nodes: int = 0


def probes(spec: ModelSpec, real: Feeds | None, *, costly: bool = False) -> tuple[Feeds, ...]:
    """Return the feeds by which rewrites prove themselves: random at several batch sizes, and real ones where given."""
    fixed = spec.inputs[0].shape[0]
    batches = (fixed,) if isinstance(fixed, int) else COSTLY_BATCHES if costly else PROBE_BATCHES
    sets: list[Feeds] = [random_feeds(spec.inputs, batch, _SEED + batch) for batch in batches]
    if real is None:
        return tuple(sets)
    return (*sets, {name: array[:1] for name, array in real.items()} if costly else real)


def is_costly(module: "nn.Module", spec: ModelSpec) -> bool:
    """Return whether one sample takes COSTLY_FLOPS or more, as torch counts them (recurrent layers as nothing)."""
    return flops_of(module, spec) >= COSTLY_FLOPS


@dataclass
class OnnxConverter:
    """Makes the ONNX artifact of one source, with all rewrites or without some.

    What torch exports is kept for each choice of module rewrites, so that another choice of graph rewrites costs no
    other export.

    `module` is in evaluation mode, or None where the source is `onnx_path`.  `real` are a few samples that rewrites are
    proven on too.
    """

    module: "nn.Module | None"
    onnx_path: Path | None
    spec: ModelSpec
    real: Feeds | None
    _exported: dict[frozenset[str], tuple[Artifact, bytes]] = field(default_factory=dict)

    @cached_property
    def costly(self) -> bool:
        """Whether a sample takes so long that proofs are kept short."""
        return self.module is not None and is_costly(self.module, self.spec)

    @cached_property
    def _probes(self) -> tuple[Feeds, ...]:
        return probes(self.spec, self.real, costly=self.costly)

    def convert(self, path: Path, without: Collection[str] = ()) -> Converted:
        """Write the artifact to `path`, made without the rewrites of these names (`rewrites.order.EVERY`: plain).

        Raises:
            ExportError: no valid opset 17 graph can be made of it.
            ParityError: the export answers otherwise than the module.
        """
        from tsexport.exporters.onnx_external import open_model
        from tsexport.exporters.onnx_file import OPSET, finish_onnx
        from tsexport.exporters.rewrites.order import REWRITES
        from tsexport.exporters.rewrites.proofs import rewrite_graph

        plain, done = self._export(path, without)
        if plain.opset != OPSET:  # an adopted file that could not be brought to opset 17 stays as it is
            return Converted(plain)
        model, more = rewrite_graph(open_model(path), self._probes, REWRITES, without=without)
        done = (*done, *more)
        # Rewrites read the shapes between nodes; runtimes infer them, and in tract they stand against fixing the batch.
        del model.graph.value_info[:]
        steps = (*plain.provenance, *(str(one) for one in done))
        artifact = finish_onnx(model, self.spec, path, steps)
        if not any(node.op_type in ("Shape", "Size") for node in model.graph.node):
            # Nothing is computed from shapes, so a session of its own for a batch size would gain nothing.
            artifact = replace(artifact, options=((FIX_BATCH, "no"),))
        return Converted(artifact, done, len(model.graph.node))

    def _export(self, path: Path, without: Collection[str]) -> "tuple[Artifact, tuple[Applied, ...]]":
        """Write what is exported before any rewrite of the graph; return it, and the rewrites of the module."""
        from tsexport.exporters.artifacts import write_atomically
        from tsexport.exporters.onnx import export_onnx
        from tsexport.exporters.onnx_adopt import adopt_onnx
        from tsexport.exporters.rewrites.modules import rewrite_module
        from tsexport.exporters.rewrites.order import MODULE_REWRITES

        feeds, module = self._probes, self.module
        done: tuple[Applied, ...] = ()
        if module is not None:
            module, done = rewrite_module(module, feeds, MODULE_REWRITES, without)
        key = frozenset(one.name for one in done if one.kept)
        if key in self._exported:
            plain, data = self._exported[key]
            write_atomically(path, data)
            return replace(plain, path=path, files=(path,)), done
        if module is not None:
            plain = export_onnx(module, self.spec, feeds[1 % len(feeds)], path)
        else:
            assert self.onnx_path is not None
            plain = adopt_onnx(self.onnx_path, self.spec, path)
        if len(plain.files) == 1:  # a large one, with its weights in a second file, is not worth the memory
            self._exported[key] = plain, path.read_bytes()
        return plain, done


def convert_to_onnx(
    module: "nn.Module | None",
    onnx_path: Path | None,
    spec: ModelSpec,
    real: Feeds | None,
    path: Path,
    without: Collection[str] = (),
) -> Converted:
    """Export a module, or adopt an ONNX file, and make its graph clean (see `OnnxConverter`)."""
    return OnnxConverter(module, onnx_path, spec, real).convert(path, without)


def convert_to_torchscript(
    module: "nn.Module", spec: ModelSpec, real: Feeds | None, path: Path, without: Collection[str] = ()
) -> Converted:
    """Trace a module (see `exporters.torchscript`), after the module rewrites that are for TorchScript, too."""
    from tsexport.exporters.rewrites.modules import rewrite_module
    from tsexport.exporters.rewrites.order import MODULE_REWRITES
    from tsexport.exporters.torchscript import export_torchscript

    feeds = probes(spec, real, costly=is_costly(module, spec))
    rewrites = [one for one in MODULE_REWRITES if one.torchscript]
    module, done = rewrite_module(module, feeds, rewrites, without)
    artifact = export_torchscript(module, spec, feeds[1 % len(feeds)], path)
    told = (*artifact.provenance, *(str(one) for one in done))
    return Converted(replace(artifact, provenance=told), done)


def convert_to_openvino(onnx: Artifact, path: Path) -> Converted:
    """Convert a clean ONNX artifact to OpenVINO IR."""
    from tsexport.exporters.openvino import export_openvino

    return Converted(export_openvino(onnx, path))


def file_name(format_name: str) -> str:
    """Return the file name of a format's fp32 artifact."""
    return f"model-fp32{EXPORT_FORMATS[format_name].suffix}"  # type: ignore[index]
