"""The device kit: what a GPU or board needs to build a TensorRT engine of a bundle's graph and to measure it.

`device/` holds scripts for bash and trtexec alone, their settings and a README; the graph lies in `artifacts/`, so the
two folders side by side are complete.  The scripts are the same for every bundle (`templates/*.sh`); what differs
stands in `settings.sh`.  They know the flags of each trtexec, read from NVIDIA's sources
(https://github.com/NVIDIA/TensorRT, samples/common/sampleOptions.cpp of the branches release/8.0 to release/11.1):
`--workspace` and `--buildOnly` at first, `--exportLayerInfo` from 8.2, `--memPoolSize` from 8.4, `--skipInference`
from 8.6, `--stronglyTyped` from 9.0, no flags for precisions from 11.

A kit takes the versions from the target's own on, which the graph was checked and rewritten for, to the last that the
device may have.  `tsexport.device.attaching` brings the results back.
"""

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from tsexport.bundles.engines import graph_of, tensorrt_range
from tsexport.bundles.manifest import ArtifactEntry, Manifest
from tsexport.devices import list_devices, version_key
from tsexport.errors import ExportError
from tsexport.rendering import TEMPLATES, render_markdown
from tsexport.targets import Target
from tsexport.types import BATCH

DEVICE = "device"
CALIBRATION_CACHE = "calibration.cache"
SCRIPTS = ("build_engine.sh", "measure.sh", "kit.sh")
_STRONGLY_TYPED_FROM = "9.0"
_MIB_IN_GB = 1e9 / 2**20
_MOST_WORKSPACE_MIB = 4096
_LONGEST_ARGUMENT = 100_000
"""Linux takes 131072 bytes in one argument."""
_FLOAT = 1
"""onnx.TensorProto.FLOAT."""


def write_kit(root: Path, manifest: Manifest, batches: Sequence[int], cache: str) -> None:
    """Write `device/` into a bundle's folder whose artifacts are there already; nothing where `graph_of` gives none.

    Args:
        root: the bundle's folder.
        manifest: of the bundle.
        batches: the batch sizes to measure; the engine is tuned for the first.
        cache: where a TensorRT calibration cache may lie, relative to `root`.

    Raises:
        ExportError: an input's name cannot be written on trtexec's command line.
    """
    graph = graph_of(manifest)
    if graph is None:
        return
    folder = root / DEVICE
    folder.mkdir()
    fp32 = next((one for one in manifest.artifacts if (one.format, one.precision) == ("onnx", "fp32")), None)
    has_cache = fp32 is not None and manifest.target.precision == "int8" and (root / cache).is_file()
    implicit = fp32 if has_cache else None
    if implicit is not None:
        shutil.copyfile(root / cache, folder / CALIBRATION_CACHE)
    for name in SCRIPTS:
        shutil.copyfile(TEMPLATES / name, folder / name)
        (folder / name).chmod(0o644 if name == "kit.sh" else 0o755)
    used = [graph] if implicit in (None, graph) else [graph, implicit]
    lines = [f"{file.sha256}  {file.path}\n" for entry in used if entry for file in entry.files]
    (folder / "graph.sha256").write_text("".join(lines), encoding="utf-8")
    typed = version_key(tensorrt_range(manifest.target).first) >= version_key(_STRONGLY_TYPED_FROM)
    layers = () if graph.precision != "fp16" or typed else fp32_layers(root / graph.path)
    held = layers if sum(len(one) + len(":fp32,") for one in layers) <= _LONGEST_ARGUMENT else ()
    (folder / "settings.sh").write_text(_settings(manifest, graph, implicit, batches, held), encoding="utf-8")
    (folder / "README.md").write_text(_readme(manifest, graph, implicit, batches, layers, held), encoding="utf-8")


def fp32_layers(path: Path) -> tuple[str, ...]:
    """Return the named nodes of an fp16 graph that compute in fp32, casts left out, in the graph's order.

    Names that trtexec's lists cannot hold (with a comma, a quotation mark or a star) are left out; it splits at the
    last colon.
    """
    import onnx
    import onnx.shape_inference

    model = onnx.load(path, load_external_data=False)
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {info.name: info.type.tensor_type.elem_type for info in (*graph.value_info, *graph.output)}
    return tuple(
        dict.fromkeys(
            node.name
            for node in graph.node
            if node.name
            and not set(node.name) & set(",'*")
            and node.op_type not in ("Cast", "Constant")
            and node.output
            and types.get(node.output[0]) == _FLOAT
        )
    )


def frozen_batch(graph: ArtifactEntry) -> int | None:
    """Return the batch that is frozen into a graph, None where it is free (or where inputs have no dimension)."""
    shapes = [spec.shape for spec in graph.inputs]
    if any(BATCH in shape for shape in shapes) or not all(shapes):
        return None
    first = shapes[0][0]
    return first if isinstance(first, int) else None


def workspace_mib(target: Target) -> int:
    """Return the memory that the builder may use: a quarter of the device's smallest, at most 4 GiB."""
    device = next((one for one in list_devices() if one.name == target.device), None)
    quarter = min(device.memory_gb) * _MIB_IN_GB / 4 if device else _MOST_WORKSPACE_MIB
    return min(int(quarter), _MOST_WORKSPACE_MIB)


def _sorted_batches(batches: Sequence[int], frozen: int | None) -> tuple[int, ...]:
    return (frozen,) if frozen is not None else tuple(sorted(set(batches)))


def _tuned_batch(batches: Sequence[int], frozen: int | None) -> int:
    """Return the batch that kernels are chosen for: the first that was asked for."""
    return batches[0] if frozen is None else frozen


def _input_shapes(graph: ArtifactEntry) -> tuple[str, ...]:
    """Return each input as "name:@batchx128x8", as trtexec's --shapes takes it once the batch is written in.

    trtexec splits the list at commas and takes single quotes out, so no name may have either.
    """
    found = []
    for spec in graph.inputs:
        if set(spec.name) & set(",'") or not spec.name.isprintable() or "@batch" in spec.name:
            raise ExportError(
                f"trtexec cannot be given the shape of the input {spec.name!r}: its lists have no way to write the "
                "name, which may hold no comma, quotation mark, '@batch' or control character",
                next_step="rename the input in the ONNX graph",
            )
        found.append(f"{spec.name}:" + "x".join("@batch" if dim == BATCH else str(dim) for dim in spec.shape))
    return tuple(found)


def _settings(
    manifest: Manifest,
    graph: ArtifactEntry,
    implicit: ArtifactEntry | None,
    batches: Sequence[int],
    layers: Sequence[str],
) -> str:
    versions, frozen = tensorrt_range(manifest.target), frozen_batch(graph)
    single = {
        "KIT_BUNDLE": manifest.name,
        "KIT_TARGET": manifest.target.name,
        "KIT_ARTIFACT": graph.name,
        "KIT_PRECISION": graph.precision,
        "KIT_GRAPH": graph.path,
        "KIT_IMPLICIT_ARTIFACT": implicit.name if implicit else "",
        "KIT_IMPLICIT_GRAPH": implicit.path if implicit else "",
        "KIT_TENSORRT_FIRST": versions.first,
        "KIT_TENSORRT_LAST": versions.last,
        "KIT_WORKSPACE_MIB": str(workspace_mib(manifest.target)),
        "KIT_FROZEN_BATCH": "" if frozen is None else str(frozen),
        "KIT_TUNED_BATCH": str(_tuned_batch(batches, frozen)),
    }
    several = {
        "KIT_BATCHES": [str(batch) for batch in _sorted_batches(batches, frozen)],
        "KIT_INPUTS": _input_shapes(graph),
        "KIT_FP32_LAYERS": layers,
    }
    lines = ["# shellcheck shell=bash disable=SC2034", "# What the scripts beside this file build and measure."]
    lines += [f"{name}={shlex.quote(value)}" for name, value in single.items()]
    lines += [f"{name}=({' '.join(shlex.quote(value) for value in values)})" for name, values in several.items()]
    return "\n".join(lines) + "\n"


def _readme(
    manifest: Manifest,
    graph: ArtifactEntry,
    implicit: ArtifactEntry | None,
    batches: Sequence[int],
    layers: Sequence[str],
    held: Sequence[str],
) -> str:
    frozen = frozen_batch(graph)
    values = {
        "name": shlex.quote(manifest.name),
        "target": manifest.target,
        "graph": graph,
        "implicit": implicit,
        "versions": tensorrt_range(manifest.target),
        "frozen": frozen,
        "batches": _sorted_batches(batches, frozen),
        "tuned": _tuned_batch(batches, frozen),
        "held": len(held),
        "left_out": len(layers) - len(held),
    }
    return render_markdown("device.md.j2", values)
