"""Is a bundle what was built, and does it answer here as its source model answered there?

First structure and digests; then every artifact on every runtime that is installed is fed the golden inputs, at the
batch the manifest names, and held against the golden outputs within the tolerance that the manifest names for it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from tsexport.bundles.bundle import Bundle, open_bundle
from tsexport.bundles.engines import graph_of
from tsexport.bundles.golden import INPUTS, OUTPUTS, read_golden
from tsexport.bundles.manifest import ArtifactEntry, GoldenTolerance, Manifest
from tsexport.bundles.signatures import check_signature, is_signed
from tsexport.bundles.structure import check_structure
from tsexport.errors import GoldenError, NoRuntimeError, TsexportError, UnsupportedError
from tsexport.runtimes import registry
from tsexport.runtimes.comparison import compare_outputs
from tsexport.runtimes.simulation import load_for
from tsexport.types import Array, Comparison, RuntimeStatus, Tolerance

CheckStatus = Literal["passed", "failed", "not checked"]
SignatureStatus = Literal["none", "not checked", "holds"]


@dataclass(frozen=True)
class OutputError:
    """One output against its golden values.

    `max_abs_error` is the largest difference, `relative_rms` sqrt(mean((actual - golden)^2)) / sqrt(mean(golden^2));
    None where that is no finite number, because of NaN or a wrong shape (`reason` says so).
    """

    output: str
    max_abs_error: float | None
    relative_rms: float | None
    passed: bool
    reason: str = ""


@dataclass(frozen=True)
class GoldenCheck:
    """One artifact on one runtime: "not checked" where the runtime is not installed or cannot run it here."""

    artifact: str
    runtime: str
    status: CheckStatus
    tolerance: GoldenTolerance
    outputs: tuple[OutputError, ...]
    reason: str = ""


@dataclass(frozen=True)
class VerificationReport:
    """What was checked: `files` digests, `samples` golden rows fed `batch` at a time, and the checks, in order.

    `key` names the key whose signature holds; a signature is "not checked" where no key was given.
    """

    bundle: str
    files: int
    samples: int
    batch: int
    checks: tuple[GoldenCheck, ...]
    missing_runtimes: tuple[RuntimeStatus, ...]
    signature: SignatureStatus = "none"
    key: str | None = None

    @property
    def passed(self) -> bool:
        """Whether something was checked and nothing failed."""
        statuses = {check.status for check in self.checks}
        return "passed" in statuses and "failed" not in statuses

    def raise_unless_passed(self) -> None:
        """Raise what stands against the bundle.

        Raises:
            GoldenError: golden outputs are missed; every miss is named.
            NoRuntimeError: nothing could be checked.
        """
        failed = [check for check in self.checks if check.status == "failed"]
        if failed:
            raise GoldenError(
                f"the bundle {self.bundle} does not answer here as its source model did:\n"
                + "\n".join(f"  {_describe(check)}" for check in failed),
                next_step="do not serve these artifacts here; compare the versions in the manifest with yours",
            )
        if not self.passed:
            raise NoRuntimeError(
                f"no artifact of {self.bundle} could be run here: "
                + "; ".join(f"{check.artifact} on {check.runtime}: {check.reason}" for check in self.checks),
                next_step=install_hint(self.missing_runtimes),
            )


def verify_bundle(
    bundle: str | Path | Bundle, *, threads: int = 1, key: str | Path | None = None
) -> VerificationReport:
    """Check a bundle's digests, its signature where a key is given, and its golden outputs on this machine.

    Args:
        bundle: a folder, an archive, or an open bundle.
        threads: the threads each session uses.
        key: a PEM file with the Ed25519 public key that the bundle must be signed by.

    Raises:
        BundleError: not signed by that key; changed, missing or added files, links, a manifest of another schema or at
            odds with the files.
        GoldenError: an artifact misses its golden outputs.
        NoRuntimeError: no runtime is installed for any artifact.
    """
    report = examine_bundle(bundle, threads=threads, key=key)
    report.raise_unless_passed()
    return report


def examine_bundle(
    bundle: str | Path | Bundle, *, threads: int = 1, key: str | Path | None = None
) -> VerificationReport:
    """Check as `verify_bundle` does, but report missed golden outputs and missing runtimes instead of raising them.

    Raises:
        BundleError: as `verify_bundle`.
    """
    if not isinstance(bundle, Bundle):
        with open_bundle(bundle) as opened:
            return examine_bundle(opened, threads=threads, key=key)
    signer = check_signature(bundle.path, key) if key is not None else None
    files = check_structure(bundle)
    manifest = bundle.manifest
    statuses = {status.name: status for status in registry.list_statuses()}
    golden = _read_golden(bundle)
    checks = tuple(
        _check_artifact(bundle, entry, runtime, statuses.get(runtime), golden, threads)
        for entry in manifest.artifacts
        for runtime in (*entry.runtimes, *_device_runtimes(manifest, entry, statuses))
    )
    wanted = dict.fromkeys(runtime for entry in manifest.artifacts for runtime in entry.runtimes)
    missing = tuple(statuses[name] for name in wanted if name in statuses and not statuses[name].available)
    signature: SignatureStatus = "holds" if signer else "not checked" if is_signed(bundle.path) else "none"
    samples, batch = manifest.golden.samples, manifest.golden.batch
    return VerificationReport(bundle.name, files, samples, batch, checks, missing, signature, signer)


def _device_runtimes(
    manifest: Manifest, entry: ArtifactEntry, statuses: Mapping[str, RuntimeStatus]
) -> tuple[str, ...]:
    """Return TensorRT for the graph that engines are built of, where it is installed: there the engine answers too."""
    status = statuses.get("tensorrt")
    return ("tensorrt",) if status is not None and status.available and entry == graph_of(manifest) else ()


def install_hint(missing: tuple[RuntimeStatus, ...]) -> str:
    """Return the sentence that names the pip command of each missing runtime, or ""."""
    return "install one with: " + " or ".join(status.pip_command for status in missing) if missing else ""


@dataclass(frozen=True)
class _GoldenArrays:
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    batch: int


def _read_golden(bundle: Bundle) -> _GoldenArrays:
    manifest, entry = bundle.manifest, bundle.manifest.artifacts[0]
    return _GoldenArrays(
        read_golden(bundle.path, INPUTS, entry.inputs, manifest.golden.samples),
        read_golden(bundle.path, OUTPUTS, entry.outputs, manifest.golden.samples),
        manifest.golden.batch,
    )


def _check_artifact(
    bundle: Bundle,
    entry: ArtifactEntry,
    runtime: str,
    status: RuntimeStatus | None,
    golden: _GoldenArrays,
    threads: int,
) -> GoldenCheck:
    tolerance = entry.golden_tolerance
    if status is None:
        return GoldenCheck(
            entry.name, runtime, "not checked", tolerance, (), "this tsexport does not know that runtime"
        )
    if not status.available:
        return GoldenCheck(entry.name, runtime, "not checked", tolerance, (), status.reason or "not installed")
    try:
        answers = _answers(bundle, entry, runtime, golden, threads)
    except UnsupportedError as error:
        return GoldenCheck(entry.name, runtime, "not checked", tolerance, (), error.message)
    except TsexportError as error:
        return GoldenCheck(entry.name, runtime, "failed", tolerance, (), error.message)
    outputs = compare_with_golden(golden.outputs, answers, tolerance)
    passed = all(output.passed for output in outputs)
    return GoldenCheck(entry.name, runtime, "passed" if passed else "failed", tolerance, outputs)


def _answers(
    bundle: Bundle, entry: ArtifactEntry, runtime: str, golden: _GoldenArrays, threads: int
) -> dict[str, Array]:
    """Return the artifact's answers to the golden inputs, fed in the manifest's batches, as arrays over all samples."""
    samples = len(next(iter(golden.outputs.values())))
    parts: dict[str, list[Array]] = {}
    with load_for(bundle.manifest.target, bundle.artifact(entry.name), runtime, threads) as session:
        for start in range(0, samples, golden.batch):
            feeds = {name: array[start : start + golden.batch] for name, array in golden.inputs.items()}
            for name, array in session.run(feeds).items():
                parts.setdefault(name, []).append(np.asarray(array))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def compare_with_golden(
    golden: Mapping[str, Array], answers: Mapping[str, Array], tolerance: GoldenTolerance
) -> tuple[OutputError, ...]:
    """Hold outputs against their golden values; NaN, infinity, missing or unexpected outputs and wrong shapes fail."""
    atol = math.inf if tolerance.atol is None else tolerance.atol  # without a bound: only what cannot be compared fails
    elementwise = Tolerance(tolerance.name, atol, tolerance.rtol or 0.0, tolerance.reason)
    return tuple(
        _within_rms(comparison, tolerance) for comparison in compare_outputs(golden, answers, elementwise, scaled=False)
    )


def _within_rms(comparison: Comparison, tolerance: GoldenTolerance) -> OutputError:
    passed, reason, bound = comparison.passed, comparison.reason, tolerance.max_relative_rms
    if passed and bound is not None and comparison.relative_rms > bound:
        passed, reason = False, f"relative RMS error {comparison.relative_rms:.4g}, allowed {bound:g}"
    return OutputError(
        comparison.output, _finite(comparison.max_abs_error), _finite(comparison.relative_rms), passed, reason
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _describe(check: GoldenCheck) -> str:
    """Return a failed check as one line: artifact, runtime, output, error, tolerance."""
    where = f"{check.artifact} on {check.runtime}"
    if not check.outputs:
        return f"{where}: {check.reason}"
    missed = "; ".join(
        f"output {output.output}: {output.reason}"
        + (f", largest error {output.max_abs_error:.3g}" if output.max_abs_error is not None else "")
        for output in check.outputs
        if not output.passed
    )
    return f"{where}, tolerance {check.tolerance.name}: {missed}"
