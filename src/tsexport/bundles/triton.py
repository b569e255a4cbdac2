"""`triton/`: a model repository for NVIDIA's Triton Inference Server, in every bundle that its backends can serve.

    triton/README.md
    triton/<model>/config.pbtxt
    triton/<model>/1/model.onnx (model.xml and model.bin, model.pt): the artifact's own bytes

<model> is the selected artifact, on the backend of its runtime.  For a GPU it is the TensorRT engine of the graph: the
device kit builds it on the device, so only its configuration is here.  Triton takes fewer settings than a runtime does:
its OpenVINO backend cannot be told to compute in fp32 where the CPU has bf16, and its ONNX Runtime backend takes no
session entries.  Where the selected artifact needs a setting that cannot be given, `<model>-<backend>` beside it serves
another artifact that needs none, ONNX Runtime's where there is one, and the README says which is which.

TorchScript names no outputs, so its tensors are INPUT__0, OUTPUT__0 and so on, in the order of the bundle's
(https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md).
"""

import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from tsexport.bundles.engines import graph_of, tensorrt_range
from tsexport.bundles.entries import bundle_artifact
from tsexport.bundles.loading import speed_order
from tsexport.bundles.manifest import ArtifactEntry, Manifest, RankedArtifact, Selection
from tsexport.bundles.triton_config import (
    ANY_SIZE,
    CONFIG,
    DATA_TYPES,
    TRITON,
    VERSION,
    TritonConfig,
    TritonTensor,
    config_text,
)
from tsexport.devices import version_key
from tsexport.rendering import render_markdown
from tsexport.runtimes.options import FIX_BATCH, GRAPH_OPTIMIZATION_LEVEL, own_options
from tsexport.types import BATCH, TensorSpec

README = "README.md"
PLAN = "model.plan"
TORCHSCRIPT_RUNS = 3
"""TorchScript's executor profiles before it optimizes: its first two calls are slow."""
_PRECISION_HINT = "INFERENCE_PRECISION_HINT"
_GRAPH_LEVELS = {"basic": -1, "extended": 1, "disabled": 2}
"""Triton's numbers for ONNX Runtime's levels; "all" is what it does without one."""
_INT64_FROM = "9.0"
"""The first TensorRT with INT64; before, inputs of INT64 become INT32."""
_NO_BFLOAT16 = frozenset(DATA_TYPES) - {"bfloat16"}


@dataclass(frozen=True)
class Backend:
    """A backend of Triton: its platform, the dtypes it takes, and whether it takes tensors without any dimension."""

    name: str
    platform: str
    dtypes: frozenset[str]
    scalars: bool = True


BACKENDS = {
    "onnxruntime": Backend("onnxruntime", "onnxruntime_onnx", frozenset(DATA_TYPES)),
    "openvino": Backend("openvino", "", _NO_BFLOAT16 - {"float64"}, scalars=False),
    "torchscript": Backend("pytorch", "pytorch_libtorch", _NO_BFLOAT16 - {"uint16", "uint32", "uint64"}),
}
"""Of each runtime; those of the others cannot be served by Triton."""
TENSORRT = Backend(
    "tensorrt",
    "tensorrt_plan",
    frozenset({"float32", "float16", "bfloat16", "int8", "uint8", "int32", "int64", "bool"}),
)


@dataclass(frozen=True)
class ServedModel:
    """One folder of the repository: its configuration, what it serves, and the files of its version 1.

    `files` are (path in the bundle, name in the folder); () where the device builds the engine.  `tensors` pairs each
    tensor's name in the bundle with Triton's.  `not_given` are the artifact's settings that Triton cannot be given.
    """

    config: TritonConfig
    artifact: ArtifactEntry
    runtime: str
    files: tuple[tuple[str, str], ...]
    tensors: tuple[tuple[str, str], ...]
    not_given: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Settings:
    """What a runtime's options become: parameters, the graph level, and what cannot be given."""

    parameters: tuple[tuple[str, str], ...] = ()
    not_given: tuple[str, ...] = ()
    graph_level: int | None = None


def write_repository(root: Path, manifest: Manifest, selection: Selection) -> tuple[ServedModel, ...]:
    """Write `triton/` into a bundle's folder whose artifacts are there already; nothing where Triton can serve none.

    Raises:
        ConfigurationError: an artifact has an option that belongs to no runtime.
        MissingDependencyError: jinja2 is not installed.
    """
    served = served_models(manifest, selection)
    for model in served:
        folder = root / TRITON / model.config.name
        folder.mkdir(parents=True)
        (folder / CONFIG).write_text(config_text(model.config), encoding="utf-8")
        for source, name in model.files:
            (folder / VERSION).mkdir(exist_ok=True)
            shutil.copyfile(root / source, folder / VERSION / name)
    if served:
        values = {"manifest": manifest, "served": served, "threads": selection.threads, "narrowed": _narrowed(manifest)}
        (root / TRITON / README).write_text(render_markdown("triton.md.j2", values), encoding="utf-8")
    return served


def served_models(manifest: Manifest, selection: Selection) -> tuple[ServedModel, ...]:
    """Return what `triton/` serves, () where Triton has no backend for any artifact.

    First the selected artifact, or where Triton cannot serve that, the fastest that it can.  Where settings of it
    cannot be given, another beside it that needs none.

    Raises:
        ConfigurationError: an artifact has an option that belongs to no runtime.
    """
    name = model_name(manifest)
    if manifest.target.tensorrt is not None:
        graph = graph_of(manifest)
        return (_engine(manifest, selection, graph, name),) if graph is not None and _takes(TENSORRT, graph) else ()
    ranked = (RankedArtifact(selection.artifact, selection.runtime), *speed_order(manifest, selection))
    found = [
        _served(manifest, selection, manifest.artifact(one.artifact), one.runtime, name)
        for one in dict.fromkeys(ranked)
        if one.runtime in BACKENDS and _takes(BACKENDS[one.runtime], manifest.artifact(one.artifact))
    ]
    exact = [one for one in found if not one.not_given]
    if not found or not exact or exact[0] is found[0]:
        return tuple(found[:1])
    beside = min(exact, key=lambda one: one.runtime != "onnxruntime")
    config = replace(beside.config, name=f"{name}-{beside.config.backend}")
    return found[0], replace(beside, config=config)


def model_name(manifest: Manifest) -> str:
    """Return `<model>[-<component>]`, with "_" for what a URL cannot hold as it is."""
    parts = (manifest.model.name, manifest.model.component)
    return re.sub(r"[^A-Za-z0-9_.-]|^\.", "_", "-".join(part for part in parts if part))


def _takes(backend: Backend, entry: ArtifactEntry) -> bool:
    specs = (*entry.inputs, *entry.outputs)
    scalars = any(spec.shape == () for spec in specs)
    return {spec.dtype for spec in specs} <= backend.dtypes and (backend.scalars or not scalars)


def _served(manifest: Manifest, selection: Selection, entry: ArtifactEntry, runtime: str, name: str) -> ServedModel:
    backend = BACKENDS[runtime]
    instances = max(1, manifest.target.cores // selection.threads)
    settings = _settings(entry, runtime, selection.threads, instances)
    files = _version_files(entry)
    inputs, outputs = _tensors(entry.inputs, entry), _tensors(entry.outputs, entry)
    if runtime == "torchscript":
        inputs, outputs = _numbered(inputs, "INPUT"), _numbered(outputs, "OUTPUT")
    config = TritonConfig(
        name=name,
        backend=backend.name,
        platform=backend.platform,
        model_file=files[0][1],
        max_batch_size=_max_batch_size(entry, selection),
        inputs=inputs,
        outputs=outputs,
        preferred_batch_sizes=_preferred(entry, selection),
        instances=instances,
        kind="KIND_CPU",
        parameters=settings.parameters,
        warm_up_sizes=_warm_up_sizes(entry, selection),
        warm_up_runs=TORCHSCRIPT_RUNS if runtime == "torchscript" else 1,
        graph_level=settings.graph_level,
    )
    return ServedModel(config, entry, runtime, files, _pairs(entry, config), settings.not_given)


def _engine(manifest: Manifest, selection: Selection, graph: ArtifactEntry, name: str) -> ServedModel:
    """Return the engine that the device kit builds of a graph: its profile holds batches from 1 to the largest."""
    narrow = _narrows(manifest)
    config = TritonConfig(
        name=name,
        backend=TENSORRT.name,
        platform=TENSORRT.platform,
        model_file=PLAN,
        max_batch_size=_max_batch_size(graph, selection),
        inputs=_tensors(graph.inputs, graph, narrow=narrow),
        outputs=_tensors(graph.outputs, graph, narrow=narrow),
        preferred_batch_sizes=_preferred(graph, selection),
        instances=1,
        kind="KIND_GPU",
        parameters=(),
        warm_up_sizes=_warm_up_sizes(graph, selection),
    )
    return ServedModel(config, graph, "tensorrt", (), _pairs(graph, config))


def _version_files(entry: ArtifactEntry) -> tuple[tuple[str, str], ...]:
    """Return (path in the bundle, name in the version's folder) of an artifact's files.

    The first becomes model.SUFFIX, and so does OpenVINO's .bin, which is looked for under the .xml's name; an ONNX
    file's weights keep their name, which it holds.
    """
    found = []
    for index, file in enumerate(entry.files):
        path = PurePosixPath(file.path)
        renamed = index == 0 or entry.format == "openvino"
        found.append((file.path, f"model{path.suffix}" if renamed else path.name))
    return tuple(found)


def _is_batched(entry: ArtifactEntry) -> bool:
    return all(spec.shape[:1] == (BATCH,) for spec in (*entry.inputs, *entry.outputs))


def _max_batch_size(entry: ArtifactEntry, selection: Selection) -> int:
    if not _is_batched(entry):
        return 0
    return 1 if entry.batch_dependent else max(selection.triton_batch_sizes)


def _preferred(entry: ArtifactEntry, selection: Selection) -> tuple[int, ...]:
    """Return the batch sizes that requests are gathered to, () where none are: a request alone is never held back."""
    if not _is_batched(entry) or entry.batch_dependent:
        return ()
    return tuple(sorted({size for size in selection.triton_batch_sizes if size > 1}))


def _warm_up_sizes(entry: ArtifactEntry, selection: Selection) -> tuple[int, ...]:
    return tuple(sorted({1, max(1, _max_batch_size(entry, selection))}))


def _tensors(specs: tuple[TensorSpec, ...], entry: ArtifactEntry, *, narrow: bool = False) -> tuple[TritonTensor, ...]:
    leading = 1 if _is_batched(entry) else 0
    return tuple(
        TritonTensor(
            spec.name,
            DATA_TYPES["int32" if narrow and spec.dtype == "int64" else spec.dtype],
            tuple(ANY_SIZE if isinstance(dim, str) else dim for dim in spec.shape[leading:]),
        )
        for spec in specs
    )


def _numbered(tensors: tuple[TritonTensor, ...], word: str) -> tuple[TritonTensor, ...]:
    return tuple(replace(tensor, name=f"{word}__{index}") for index, tensor in enumerate(tensors))


def _pairs(entry: ArtifactEntry, config: TritonConfig) -> tuple[tuple[str, str], ...]:
    specs, tensors = (*entry.inputs, *entry.outputs), (*config.inputs, *config.outputs)
    return tuple((spec.name, tensor.name) for spec, tensor in zip(specs, tensors, strict=True))


def _settings(entry: ArtifactEntry, runtime: str, threads: int, instances: int) -> _Settings:
    """Return a runtime's options as Triton takes them."""
    options = own_options(bundle_artifact(entry, Path()), runtime)
    if runtime == "onnxruntime":
        return _onnxruntime_settings(options, threads)
    if runtime == "openvino":
        return _openvino_settings(entry, options, threads, instances)
    counts = (("INTRA_OP_THREAD_COUNT", str(threads)), ("INTER_OP_THREAD_COUNT", "1"))
    return _Settings((*counts, ("INFERENCE_MODE", "true")))


def _onnxruntime_settings(options: dict[str, str], threads: int) -> _Settings:
    counts = (("intra_op_thread_count", str(threads)), ("inter_op_thread_count", "1"), ("execution_mode", "0"))
    given = (FIX_BATCH, GRAPH_OPTIMIZATION_LEVEL)
    left = tuple(f"{key}={value}" for key, value in options.items() if key not in given)
    return _Settings(counts, left, _GRAPH_LEVELS.get(options.get(GRAPH_OPTIMIZATION_LEVEL, "all")))


def _openvino_settings(entry: ArtifactEntry, options: dict[str, str], threads: int, instances: int) -> _Settings:
    """One compiled model serves all instances: a stream for each, and the threads of all."""
    parameters = [
        ("INFERENCE_NUM_THREADS", str(threads * instances)),
        ("NUM_STREAMS", str(instances)),
        ("PERFORMANCE_HINT", "LATENCY"),
    ]
    stated = {_PRECISION_HINT: "bf16" if entry.precision == "bf16" else "f32", **options}
    if stated[_PRECISION_HINT] == "bf16":
        parameters.append(("HINT_BF16", "YES"))
        del stated[_PRECISION_HINT]
    if _is_batched(entry):
        parameters.append(("ENABLE_BATCH_PADDING", "YES"))
    return _Settings(tuple(parameters), tuple(f"{key}={value}" for key, value in stated.items()))


def _narrows(manifest: Manifest) -> bool:
    """Return whether the first TensorRT of the kit makes INT32 of inputs of INT64."""
    return version_key(tensorrt_range(manifest.target).first) < version_key(_INT64_FROM)


def _narrowed(manifest: Manifest) -> tuple[str, ...]:
    """Return the inputs that are INT32 in some versions of the kit and INT64 in others."""
    if manifest.target.tensorrt is None or not _narrows(manifest):
        return ()
    last = version_key(tensorrt_range(manifest.target).last)
    names = tuple(spec.name for spec in manifest.model.inputs if spec.dtype == "int64")
    return names if last >= version_key(_INT64_FROM) else ()
