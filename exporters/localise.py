"""Find the first layer of an exported model that does not answer as the source module does.

The source module runs once with hooks, and so every layer's inputs and outputs are known.  Then

- ONNX and OpenVINO IR: every value of the graph is read (`tsexport.exporters.probes`), and each layer is looked for
  by the scope that the exporter wrote into node names, failing that by size and value (a rewritten graph names its
  nodes otherwise). A layer departs where its scope holds values of its size and none is right, unless something right
  is computed from them.  The first such layer, in the order in which the source's calls end, is named.
- TorchScript: every traced submodule is fed what the source's own was fed; the first that answers otherwise is named.
- tract shows no intermediate values: the ONNX file is run in ONNX Runtime instead.

Layers are compared under the tolerance that was missed, with atol in units of the layer's RMS.
"""

import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tsexport.exporters.artifacts import describe
from tsexport.exporters.formats import EXPORT_FORMATS
from tsexport.exporters.probes import Probe, ProbedGraph, probe_onnx, probe_openvino, without_repeats
from tsexport.exporters.recording import LayerRecord, flat_tensors, record_layers
from tsexport.runtimes.comparison import TOLERANCES, compare_outputs
from tsexport.types import Array, Artifact, Comparison, Feeds, Format, ModelSpec, Tolerance


@dataclass(frozen=True)
class Departure:
    """Where an artifact first departs from its source; `layer` is None, and `reason` says why, where nothing was found.

    `node` is the graph's node whose value is nearest to the layer's right answer; `comparison` is between the two.
    """

    layer: str | None
    reason: str
    node: str = ""
    comparison: Comparison | None = None


def localise(
    module: nn.Module, spec: ModelSpec, artifact: Artifact, runtime: str, feeds: Feeds, tolerance: Tolerance
) -> Departure:
    """Return the first layer of `artifact` that departs from `module` on `feeds`, or why it could not be found."""
    try:
        if artifact.format == "torchscript":
            return _localise_trace(module, spec, artifact, feeds, tolerance)
        records = record_layers(module, spec, feeds, fastpath=False)
        if artifact.format == "openvino":
            graph = probe_openvino(artifact.path, feeds, artifact.options)
        else:
            graph = probe_onnx(artifact.path, feeds)
    except Exception as error:  # a second failure must not hide the one that is being explained
        return Departure(None, f"the first layer could not be localised: {' '.join(str(error).split())[:200]}")
    if artifact.format == "onnx" and runtime != "onnxruntime" and _answers_right(records[-1], graph, spec, tolerance):
        return Departure(
            None,
            f"the first layer could not be localised: the same file in ONNX Runtime, without optimizations, answers "
            f"as the "
            f"source does, and {runtime} shows no intermediate values",
        )
    found = first_departure(records, graph, spec, tolerance)
    if artifact.format == "onnx" and runtime != "onnxruntime":
        return Departure(found.layer, f"{found.reason} (found in ONNX Runtime)", found.node, found.comparison)
    return found


def departing_layer(module: nn.Module, spec: ModelSpec, name: Format, data: bytes, feeds: Feeds) -> str:
    """Return in words which layer of an exported program, given as the bytes of its file, departs first on `feeds`."""
    export_format = EXPORT_FORMATS[name]
    with tempfile.TemporaryDirectory(prefix="tsexport-localise-") as folder:
        path = Path(folder) / f"program{export_format.suffix}"
        path.write_bytes(data)
        artifact = describe((path,), name, spec, (), name=name, precision="fp32", runtimes=export_format.runtimes)
        return localise(module, spec, artifact, artifact.runtimes[0], feeds, TOLERANCES[export_format.tolerance]).reason


def first_departure(
    records: tuple[LayerRecord, ...], graph: ProbedGraph, spec: ModelSpec, tolerance: Tolerance
) -> Departure:
    """Return the first layer that departs, from the source's recorded calls and the graph's values."""
    matches = [_match(record, graph, tolerance) for record in records]
    trusted = frozenset(index for match in matches if match.matched for index in graph.ancestors(match.matched.index))
    unseen: list[LayerRecord] = []
    for record, match in zip(records, matches, strict=True):
        if match.matched or not record.outputs:
            # what came before something right was fused into it
            unseen = []
        elif match.nearest is None or match.comparison is None:
            unseen.append(record)
        elif match.nearest.index not in trusted:
            before = f"; the graph holds no value of {unseen[0].title} before it" if unseen and record.name else ""
            return _departure(record, match.nearest, match.comparison, before)
    if unseen and unseen[0].name:
        return Departure(
            unseen[0].name,
            f"the first layer that departs is {unseen[0].title}, or one that was fused with it: the graph holds no "
            f"value "
            f"that is its answer",
        )
    return _where_the_output_departs(records[-1], graph, spec, tolerance)


@dataclass(frozen=True)
class _Match:
    matched: Probe | None = None
    nearest: Probe | None = None
    comparison: Comparison | None = None


def _match(record: LayerRecord, graph: ProbedGraph, tolerance: Tolerance) -> _Match:
    if not record.outputs or not record.name or record.outputs[0].dtype.kind != "f":
        return _Match()
    expected = record.outputs[0]
    sized = [probe for probe in graph.probes if probe.value.size == expected.size]
    scoped = [probe for probe in sized if _in_scope(probe, record)]
    nearest: tuple[Probe, Comparison] | None = None
    for probe in scoped:
        comparison = _compare(record.title, expected, probe.value, tolerance)
        if comparison.passed:
            return _Match(matched=probe)
        # on a tie the later one: it is nearer to the layer's answer
        if nearest is None or comparison.relative_rms <= nearest[1].relative_rms:
            nearest = probe, comparison
    # a value that is everywhere the same matches by accident
    if expected.size > 1 and np.ptp(expected) > 0:
        for probe in sized:
            if _compare(record.title, expected, probe.value, tolerance).passed:
                return _Match(matched=probe)
    return _Match(nearest=nearest[0], comparison=nearest[1]) if nearest else _Match()


def _in_scope(probe: Probe, record: LayerRecord) -> bool:
    if record.call == 0:
        return probe.scope == record.name
    return probe.scope != record.name and without_repeats(probe.scope) == without_repeats(record.name)


def _compare(title: str, expected: Array, actual: Array, tolerance: Tolerance) -> Comparison:
    # flattened: exporters write [B, T, D] as [B * T, D], in the same order
    flat = {title: expected.reshape(-1)}
    return compare_outputs(flat, {title: actual.reshape(-1).astype(expected.dtype)}, tolerance, scaled=True)[0]


def _departure(record: LayerRecord, probe: Probe, comparison: Comparison, more: str = "") -> Departure:
    return Departure(
        record.name,
        f"the first layer that departs is {record.title}, at node {probe.node!r}: max error "
        f"{comparison.max_abs_error:.3g}, relative RMS {comparison.relative_rms:.3g}{more}",
        probe.node,
        comparison,
    )


def _outputs(
    record: LayerRecord, graph: ProbedGraph, spec: ModelSpec, tolerance: Tolerance
) -> Iterable[tuple[Probe, Comparison]]:
    """Yield the graph's outputs with their comparisons; `record` is that of the whole model."""
    for tensor, expected in zip(spec.outputs, record.outputs, strict=True):
        for probe in graph.probes:
            if probe.name == tensor.name:
                yield (
                    probe,
                    compare_outputs({probe.name: expected}, {probe.name: probe.value}, tolerance, scaled=True)[0],
                )


def _answers_right(record: LayerRecord, graph: ProbedGraph, spec: ModelSpec, tolerance: Tolerance) -> bool:
    return all(comparison.passed for _, comparison in _outputs(record, graph, spec, tolerance))


def _where_the_output_departs(
    record: LayerRecord, graph: ProbedGraph, spec: ModelSpec, tolerance: Tolerance
) -> Departure:
    for probe, comparison in _outputs(record, graph, spec, tolerance):
        if not comparison.passed:
            return _departure(record, probe, comparison, ", after the last of its layers")
    return Departure(
        None,
        "the first layer could not be localised: with every value exposed, and nothing fused, the outputs are right",
    )


def _localise_trace(
    module: nn.Module, spec: ModelSpec, artifact: Artifact, feeds: Feeds, tolerance: Tolerance
) -> Departure:
    records = record_layers(module, spec, feeds, fastpath=True)
    with warnings.catch_warnings():
        # TorchScript is deprecated as a whole; it is the format that was asked for
        warnings.filterwarnings("ignore", message=".*torch.jit.load.*", category=DeprecationWarning)
        traced: torch.jit.ScriptModule = torch.jit.load(str(artifact.path), map_location="cpu")  # type: ignore[no-untyped-call]
    parts = dict(traced.named_modules())
    for record in records:
        answers = _run_part(parts.get(record.name), record)
        for expected in record.outputs if answers else ():
            comparisons = [
                _compare(record.title, expected, answer, tolerance)
                for answer in answers
                if answer.shape == expected.shape
            ]
            # a trace leaves out outputs that nobody reads, such as an LSTM's states
            if comparisons and not any(comparison.passed for comparison in comparisons):
                nearest = min(comparisons, key=lambda comparison: comparison.relative_rms)
                reason = (
                    f"the first layer that departs is {record.title}, fed with the source's own inputs: max error "
                    f"{nearest.max_abs_error:.3g}, relative RMS {nearest.relative_rms:.3g}"
                )
                return Departure(record.name, reason, record.name, nearest)
            if comparisons:
                break
    return Departure(
        None,
        "the first layer could not be localised: fed with the source's own inputs, every traced submodule that can be "
        "called on its own answers as the source's does",
    )


def _run_part(part: nn.Module | None, record: LayerRecord) -> tuple[Array, ...]:
    """Return what a traced submodule answers; nothing where it cannot be called with the source's arguments."""
    # tracing keeps a method for each call: forward, forward1, forward2
    method = getattr(part, f"forward{record.call or ''}", None)
    if method is None:
        return ()
    try:
        with torch.no_grad():
            return tuple(tensor.numpy() for tensor in flat_tensors(method(*record.inputs)))
    except RuntimeError:
        # the tracer changes the arguments of a submodule that takes more than tensors, or reads outer values
        return ()
