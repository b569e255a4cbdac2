"""`tsexport.load`: a bundle's artifact as a session.

Only what is needed is checked and imported: the digests of the manifest, the selection and the artifact's own files,
and the one runtime that will run it.  Nothing is opened by a runtime before its digest holds.
"""

import os
from pathlib import Path

from tsexport.bench.fingerprint import affinity_cores, cpu_quota, usable_cores
from tsexport.bundles.bundle import Bundle, open_bundle
from tsexport.bundles.checksums import check_files, read_sums
from tsexport.bundles.engines import graph_of
from tsexport.bundles.manifest import MANIFEST, SELECTION, Manifest, RankedArtifact, Selection
from tsexport.bundles.signatures import check_signature
from tsexport.bundles.structure import check_entry
from tsexport.bundles.verification import install_hint
from tsexport.errors import MissingDependencyError, UsageError, did_you_mean
from tsexport.runtimes import registry
from tsexport.runtimes.simulation import load_for
from tsexport.types import RuntimeStatus, Session

TENSORRT = "tensorrt"


def load_session(
    bundle: str | Path | Bundle,
    precision: str | None = None,
    runtime: str | None = None,
    threads: int | None = None,
    *,
    key: str | Path | None = None,
) -> Session:
    """Load an artifact of a bundle, ready to run.

    A bundle for a GPU or board runs on TensorRT where that is installed, in an engine of this machine; anywhere else on
    the runtime that it was verified with.

    Args:
        bundle: a folder, a .tar, .tar.gz or .zip of one, or an open bundle.
        precision: the fastest artifact of that precision ("fp32", "int8", ...) instead of the selected one.
        runtime: the fastest artifact on that runtime; with `precision`, the fastest that is both.
        threads: threads of one session; by default as many as it was measured with, at most the cores here.
        key: a PEM file with the Ed25519 public key that the bundle must be signed by; any bundle is loaded without.

    Raises:
        BundleError: the bundle is damaged or not signed by that key, or the artifact's files are not those that were
            written.
        MissingDependencyError: the runtime is not installed; the message names the pip command and what else could run.
        UsageError: the bundle has no such artifact, `threads` is below 1, or the key cannot be used.
    """
    if not isinstance(bundle, Bundle):
        opened = open_bundle(bundle, key)
        try:
            session = load_session(opened, precision, runtime, threads)
        except BaseException:
            opened.close()
            raise
        opened.keep_until_gone(session)  # runtimes may open the artifact again, for another batch size
        return session
    if key is not None:
        check_signature(bundle.path, key)
    check_files(bundle.path, (MANIFEST, SELECTION))
    manifest, selection = bundle.manifest, bundle.selection
    count = _threads(threads, selection)
    if precision is None and runtime is None and on_tensorrt(manifest) is not None and _is_usable(TENSORRT):
        runtime = TENSORRT
    choice = choose_artifact(manifest, selection, precision, runtime)
    _check_installed(choice, manifest, selection)
    entry = manifest.artifact(choice.artifact)
    check_files(bundle.path, tuple(file.path for file in entry.files))
    check_entry(entry, read_sums(bundle.path), bundle.path)
    return load_for(manifest.target, bundle.artifact(choice.artifact), choice.runtime, count)


def speed_order(manifest: Manifest, selection: Selection) -> tuple[RankedArtifact, ...]:
    """Return every artifact on every runtime it is meant for: the measured ones by speed, then the rest as listed.

    TensorRT comes last, with the graph that engines are built of: no bundle has a measurement of it when it is built.
    """
    listed = [RankedArtifact(entry.name, runtime) for entry in manifest.artifacts for runtime in entry.runtimes]
    device = on_tensorrt(manifest)
    return tuple(dict.fromkeys((*selection.order, *listed, *((device,) if device is not None else ()))))


def on_tensorrt(manifest: Manifest) -> RankedArtifact | None:
    """Return the graph of a bundle that TensorRT runs; None for a CPU's bundle."""
    graph = graph_of(manifest)
    return RankedArtifact(graph.name, TENSORRT) if graph is not None else None


def choose_artifact(
    manifest: Manifest, selection: Selection, precision: str | None, runtime: str | None
) -> RankedArtifact:
    """Return what `load_session` opens for these arguments, installed or not.

    Raises:
        UsageError: the bundle has no artifact of that precision, or for that runtime.
    """
    if precision is None and runtime is None:
        return RankedArtifact(selection.artifact, selection.runtime)
    order = speed_order(manifest, selection)
    precisions = {entry.name: entry.precision for entry in manifest.artifacts}
    _check_known("precision", precision, sorted(set(precisions.values())))
    _check_known("runtime", runtime, sorted({ranked.runtime for ranked in order}))
    for ranked in order:
        if precision in (None, precisions[ranked.artifact]) and runtime in (None, ranked.runtime):
            return ranked
    there = ", ".join(f"{precisions[ranked.artifact]} on {ranked.runtime}" for ranked in order)
    raise UsageError(f"the bundle {manifest.name} has no {precision} artifact for {runtime}; it has {there}")


def _check_known(what: str, given: str | None, known: list[str]) -> None:
    if given is not None and given not in known:
        raise UsageError(
            f"the bundle has nothing for {what} {given!r}{did_you_mean(given, known)}; it has {', '.join(known)}"
        )


def _is_usable(runtime: str) -> bool:
    return any(status.name == runtime and status.available for status in registry.list_statuses())


def _check_installed(choice: RankedArtifact, manifest: Manifest, selection: Selection) -> None:
    statuses = {status.name: status for status in registry.list_statuses()}
    status = statuses.get(choice.runtime)
    if status is not None and status.available:
        return
    others = [
        ranked
        for ranked in speed_order(manifest, selection)
        if ranked.runtime in statuses and statuses[ranked.runtime].available
    ]
    if others:
        listed = ", ".join(f"{other.artifact} on {other.runtime}" for other in others)
        alternative = f'installed here and able to run this bundle: {listed}; load with runtime="{others[0].runtime}"'
    else:
        alternative = "no other runtime of this bundle is installed here"
    raise MissingDependencyError(
        f"{choice.artifact} runs on {choice.runtime}, which is not usable here: {_why(choice.runtime, status)}; "
        f"{alternative}",
        next_step=install_hint((status,)) if status else "",
    )


def _why(runtime: str, status: RuntimeStatus | None) -> str:
    if status is None:
        return f"this tsexport does not know a runtime {runtime!r}"
    return status.reason or "it is not installed"


def _threads(given: int | None, selection: Selection) -> int:
    if given is None:
        return min(selection.threads, cores_here())
    if given < 1:
        raise UsageError(f"threads is {given}, allowed are 1 and more")
    return given


def cores_here() -> int:
    """Return how many cores this process may use, which `taskset` and a container's CPU quota limit."""
    return usable_cores(affinity_cores(os.cpu_count() or 1), cpu_quota())
