"""`tsexport diff`: what differs between two bundles, and why.

Both must be whole (their digests hold); nothing in them is run.  Files are compared by the digests that the bundles
list.  Where they differ, the reasons are looked for in what the bundles say of themselves: settings and inputs,
candidates, operators and the precision of every layer, accuracy, versions, licences.  Latencies are medians that each
bundle measured for itself: they are set side by side, with a ratio only where machine, threads and batch are the same,
and decide nothing; `tsexport compare` does.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tsexport.bench.statistics import percentile
from tsexport.bundles.bundle import Bundle, open_bundle
from tsexport.bundles.checksums import read_sums
from tsexport.bundles.diff_records import AccuracyChange, BundleDiff, Change, FileChange, GraphChange, LatencyChange
from tsexport.bundles.graph_reading import GraphContent, read_graph
from tsexport.bundles.manifest import MANIFEST, SELECTION, ArtifactEntry, Manifest
from tsexport.bundles.measured import read_attached, read_measurements
from tsexport.bundles.sbom import SBOM, read_sbom
from tsexport.bundles.structure import check_structure
from tsexport.codec import to_plain
from tsexport.errors import MissingDependencyError

_TOLD_ELSEWHERE = ("artifacts", "absent_formats", "parity", "accuracy", "candidates", "rewrites", "caveats", "notes")
"""Parts of the manifest with a section of their own."""
_PLAIN_SOURCES = ("model.", "config.", "provenance.checkpoint", "provenance.seed")
"""Settings that an fp32 artifact is built from; others are built from the calibration data too."""
_LONGEST_TEXT = 200
_BEFORE_DIFFERENCE = 20
"""Characters that are shown before the first one that differs, of texts too long to be shown whole."""


def diff_bundles(a: str | Path | Bundle, b: str | Path | Bundle) -> BundleDiff:
    """Return what differs between two bundles.

    Raises:
        BundleError: one of them is damaged.
        UsageError: nothing is there, or it is no bundle.
    """
    if not isinstance(a, Bundle):
        with open_bundle(a) as opened:
            return diff_bundles(opened, b)
    if not isinstance(b, Bundle):
        with open_bundle(b) as opened:
            return diff_bundles(a, opened)
    for bundle in (a, b):
        check_structure(bundle)
    one, other = read_sums(a.path), read_sums(b.path)
    operators, layers, not_compared = _graphs(a, b)
    licences, no_licences = _licences(a, b)
    found = BundleDiff(
        a=a.name,
        b=b.name,
        same_bytes=one == other,
        files=(),
        settings=(*_settings(a, b), *_texts(a.manifest, b.manifest)),
        candidates=_candidates(a.manifest, b.manifest),
        operators=operators,
        layers=layers,
        accuracy=_accuracy(a.manifest, b.manifest),
        latency=_latency(a, b),
        versions=_changes(a.manifest.provenance.versions, b.manifest.provenance.versions),
        licences=licences,
        not_compared=(*not_compared, *no_licences),
    )
    files = tuple(
        FileChange(path, _status(path, one, other), _why(path, a, b, found))
        for path in sorted(one.keys() | other.keys())
        if one.get(path) != other.get(path)
    )
    return replace(found, files=files)


def _status(path: str, one: Mapping[str, str], other: Mapping[str, str]) -> str:
    return "changed" if path in one and path in other else "only in a" if path in one else "only in b"


def _why(path: str, a: Bundle, b: Bundle, diff: BundleDiff) -> str:
    """Return the reason of a file's difference, as far as the bundles tell it."""
    if path in (MANIFEST, SELECTION):
        kinds = [to_plain(bundle.manifest if path == MANIFEST else bundle.selection) for bundle in (a, b)]
        keys = [key for key in kinds[0] | kinds[1] if kinds[0].get(key) != kinds[1].get(key)]
        return f"other {', '.join(keys)}" if keys else "the same record, written otherwise"
    owners = [_owner(path, bundle.manifest) for bundle in (a, b)]
    if owners[0] is not None and owners[1] is not None:
        return _why_artifact(owners[0].name, owners[0].precision == "fp32", diff)
    if owners != [None, None]:
        return "the other bundle has no such artifact"
    if path.startswith("golden/"):
        return "other samples, or another source model"
    if path == SBOM:
        return f"made of {MANIFEST}, and of the licences that packages declare"
    if path.partition("/")[0] in ("triton", "device", "README.md"):
        return f"made of {MANIFEST}, {SELECTION} and the artifacts"
    return "made while the candidates were"


def _owner(path: str, manifest: Manifest) -> ArtifactEntry | None:
    return next((one for one in manifest.artifacts if path in [file.path for file in one.files]), None)


def _why_artifact(name: str, plain: bool, diff: BundleDiff) -> str:
    found = [
        what
        for what, changes in (("operators", diff.operators), ("precision of layers", diff.layers))
        if any(change.artifact == name for change in changes)
    ]
    why = f"other {' and '.join(found)}" if found else "the same operators with other values or names"
    sources = _PLAIN_SOURCES if plain else (*_PLAIN_SOURCES, "provenance.calibration")
    inputs = [".".join(one.what.split(".")[:2]) for one in diff.settings if one.what.startswith(sources)]
    inputs += [
        one.what for one in diff.settings if one.what.startswith("rewrites.") and one.what.endswith(f" of {name}")
    ]
    inputs += ["versions of tools"] if diff.versions else []
    return f"{why}; built from other {', '.join(dict.fromkeys(inputs))}" if inputs else why


# --- settings --------------------------------------------------------------------------------------------------------


def _settings(a: Bundle, b: Bundle) -> tuple[Change, ...]:
    """Return what differs of target, configuration, inputs and selection, by dotted name."""
    pairs = []
    for bundle in (a, b):
        plain = to_plain(bundle.manifest)
        kept = {key: value for key, value in plain.items() if key not in _TOLD_ELSEWHERE}
        kept["provenance"] = {key: value for key, value in kept["provenance"].items() if key != "versions"}
        selection = to_plain(bundle.selection)
        kept["selection"] = {key: selection[key] for key in ("threads", "triton_batch_sizes", "rewrites")}
        order = (f"{one.artifact} on {one.runtime}" for one in bundle.selection.order)
        kept["selection"]["order"] = ", ".join(order)
        kept["artifacts"] = {entry.name: _described(entry) for entry in bundle.manifest.artifacts}
        kept["absent_formats"] = {one.format: one.reason for one in bundle.manifest.absent_formats}
        kept["rewrites"] = {
            f"{one.name} of {one.artifact}": "applied" if one.applied else f"not applied: {one.reason}"
            for one in bundle.manifest.rewrites
        }
        pairs.append(dict(_flat(kept)))
    return _changes(*pairs)


def _described(entry: ArtifactEntry) -> dict[str, Any]:
    return {
        "format": entry.format,
        "precision": entry.precision,
        "size_bytes": entry.size_bytes,
        "inputs": ", ".join(map(str, entry.inputs)),
        "outputs": ", ".join(map(str, entry.outputs)),
        "runtimes": ", ".join(entry.runtimes),
        "options": ", ".join(f"{key}={value}" for key, value in entry.options),
        "provenance": "; ".join(entry.provenance),
    }


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner if isinstance(inner, str) else json.dumps(inner, ensure_ascii=False)


def _texts(a: Manifest, b: Manifest) -> tuple[Change, ...]:
    """Return caveats and notes that stand in one alone."""
    changes = []
    for what, one, other in (("caveat", a.caveats, b.caveats), ("note", a.notes, b.notes)):
        changes += [Change(what, text, None) for text in one if text not in other]
        changes += [Change(what, None, text) for text in other if text not in one]
    return tuple(changes)


def _candidates(a: Manifest, b: Manifest) -> tuple[Change, ...]:
    one, other = (
        {
            f"{c.name.removesuffix(f' on {c.runtime}')} on {c.runtime}": f"{c.status}: {c.reason}"
            for c in manifest.candidates
        }
        for manifest in (a, b)
    )
    return _changes(one, other)


def _changes(one: Mapping[str, str], other: Mapping[str, str]) -> tuple[Change, ...]:
    names = dict.fromkeys((*one, *other))
    return tuple(
        Change(name, *_shown(one.get(name), other.get(name))) for name in names if one.get(name) != other.get(name)
    )


def _shown(a: str | None, b: str | None) -> tuple[str | None, str | None]:
    """Return two texts, cut around the first character that differs where they are long."""
    shorter = min(len(a or ""), len(b or ""))
    same = next((place for place in range(shorter) if a and b and a[place] != b[place]), shorter)
    return _cut(a, same), _cut(b, same)


def _cut(text: str | None, same: int) -> str | None:
    if text is None or len(text) <= _LONGEST_TEXT:
        return text
    start = max(0, same - _BEFORE_DIFFERENCE)
    end = start + _LONGEST_TEXT
    return f"{'...' if start else ''}{text[start:end]}{'...' if end < len(text) else ''}"


# --- graphs ----------------------------------------------------------------------------------------------------------


def _graphs(a: Bundle, b: Bundle) -> tuple[tuple[GraphChange, ...], tuple[GraphChange, ...], tuple[str, ...]]:
    """Return the operators and layers that differ, and what could not be compared.

    Artifacts of the same name are compared; and the selected ones, where their names differ.
    """
    operators: list[GraphChange] = []
    layers: list[GraphChange] = []
    not_compared: list[str] = []
    for one, other in _pairs(a.manifest, b.manifest):
        label = one.name if one.name == other.name else f"{one.name} -> {other.name}"
        if one.sha256 == other.sha256 and one.options == other.options:
            continue
        try:
            contents = read_graph(one, a.path), read_graph(other, b.path)
        except MissingDependencyError as error:
            not_compared.append(f"operators and layers of {label}: {error.message}; {error.next_step}")
            continue
        operators += _graph_changes(label, *(_counts(content) for content in contents))
        if one.format != "torchscript" and other.format != "torchscript":
            layers += _graph_changes(label, contents[0].layers, contents[1].layers)
        elif one.precision != other.precision:
            layers.append(GraphChange(label, "all", one.precision, other.precision))
    return tuple(operators), tuple(layers), tuple(not_compared)


def _pairs(a: Manifest, b: Manifest) -> list[tuple[ArtifactEntry, ArtifactEntry]]:
    others = {entry.name: entry for entry in b.artifacts}
    pairs = [(entry, others[entry.name]) for entry in a.artifacts if entry.name in others]
    if a.selected.artifact != b.selected.artifact:
        pairs.append((a.artifact(a.selected.artifact), b.artifact(b.selected.artifact)))
    return pairs


def _counts(content: GraphContent) -> dict[str, str]:
    return {operator: str(count) for operator, count in content.operators.items()}


def _graph_changes(artifact: str, one: Mapping[str, str], other: Mapping[str, str]) -> list[GraphChange]:
    return [GraphChange(artifact, change.what, change.a, change.b) for change in _changes(one, other)]


# --- figures ---------------------------------------------------------------------------------------------------------


def _accuracy(a: Manifest, b: Manifest) -> tuple[AccuracyChange, ...]:
    one, other = ({(x.artifact, x.runtime): x for x in manifest.accuracy} for manifest in (a, b))
    changes = []
    for key in dict.fromkeys((*one, *other)):
        before, after = one.get(key), other.get(key)
        if before != after:
            errors = [found.output_error if found else None for found in (before, after)]
            degradations = [found.degradation if found else None for found in (before, after)]
            changes.append(AccuracyChange(*key, *errors, *degradations))
    return tuple(changes)


def _latency(a: Bundle, b: Bundle) -> tuple[LatencyChange, ...]:
    """Return the measured medians that differ; a median needs ten samples."""
    one, other = _medians(a), _medians(b)
    changes = []
    for key in dict.fromkeys((*one, *other)):
        before, after = one.get(key), other.get(key)
        if before == after:
            continue
        ratio = after / before if before and after else None
        artifact, runtime, batch, threads, machine = key
        changes.append(LatencyChange(artifact, runtime, batch, threads, machine, before, after, ratio))
    return tuple(changes)


_Key = tuple[str, str, int, int | None, str]


def _medians(bundle: Bundle) -> dict[_Key, float | None]:
    """Return the median latency of each artifact, runtime, batch, threads and machine."""
    found: dict[_Key, float | None] = {}
    for record in read_measurements(bundle):
        machine = f"{record.machine.cpu_model} ({record.machine.machine_id})"
        for one in record.measurements:
            found[one.artifact, one.runtime, one.batch, one.threads, machine] = percentile(one.samples_ms, 0.5)
    for attached in read_attached(bundle):
        copies = f"copies {attached.transfers}"
        for measured in attached.measurements:
            key = (attached.artifact, "tensorrt", measured.batch, None, f"{attached.device}, {copies}")
            found[key] = percentile(measured.samples_ms, 0.5)
    return found


# --- licences --------------------------------------------------------------------------------------------------------


def _licences(a: Bundle, b: Bundle) -> tuple[tuple[Change, ...], tuple[str, ...]]:
    without = [bundle.name for bundle in (a, b) if not (bundle.path / SBOM).is_file()]
    if without:
        return (), tuple(f"licences: {name} has no {SBOM}" for name in dict.fromkeys(without))
    return _changes(*(_licences_of(bundle) for bundle in (a, b))), ()


def _licences_of(bundle: Bundle) -> dict[str, str]:
    """Return the licences of each component by its name; files of the bundle that state none are left out."""
    return {
        one.name: " AND ".join(one.licences) or "not stated"
        for one in read_sbom(bundle.path, bundle.name)
        if one.licences or not one.is_file
    }
