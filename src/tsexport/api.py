"""The public functions, as thin as can be: each says what it takes and hands it on.  See `tsexport` for the list."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsexport.bundles.bundle import Bundle
from tsexport.bundles.verification import VerificationReport, verify_bundle
from tsexport.measurements.benchmarking import BenchmarkResult, benchmark_bundle
from tsexport.types import Session, TensorSpec

if TYPE_CHECKING:
    from tsexport.bench.compare_records import ComparisonResult
    from tsexport.bundles.diff_records import BundleDiff
    from tsexport.bundles.signing import SignedBundle
    from tsexport.device.attaching import AttachedResults
    from tsexport.estimating import MemoryEstimate
    from tsexport.exporters.device_check import DeviceReport
    from tsexport.measurements.history_series import History

StrPath = str | Path


def _path(value: StrPath | None) -> Path | None:
    return None if value is None else Path(value)


def build(
    model: str,
    target: str,
    *,
    output: StrPath,
    device: str | None = None,
    checkpoint: StrPath | None = None,
    set: Mapping[str, Any] | None = None,
    component: str | None = None,
    config: StrPath | None = None,
    inputs: Sequence[TensorSpec] | None = None,
    calibration: StrPath | None = None,
    calibration_table: StrPath | None = None,
    evaluation: StrPath | None = None,
    series: Mapping[str, Any] | None = None,
    metric: str | None = None,
    max_degradation: float | None = None,
    max_output_error: float | None = None,
    include_preprocessing: bool | None = None,
    objective: str | None = None,
    batch: Sequence[int] | None = None,
    runtime: str | None = None,
    formats: Sequence[str] | None = None,
    selection: StrPath | None = None,
    table: StrPath | None = None,
    atol: float | None = None,
    rtol: float | None = None,
    threads: int | None = None,
    seconds: float | None = None,
    search_seconds: float | None = None,
    prune: float | None = None,
    max_prune_degradation: float | None = None,
    rollout: int | None = None,
    seed: int | None = None,
    name: str | None = None,
    force: bool | None = None,
    quiet: bool = True,
) -> Bundle:
    """Build a bundle; the keywords are the long options of `tsexport build`.

    Args:
        model: a registered name, "module:factory", or an .onnx, TorchScript or .pt2 file.
        target: such as "cpu4-int8" or "jetson-fp16"; `list_targets` gives all.
        device: the target's device, such as "avx2", "xavier-nx@jetpack-5.1" or "@tensorrt-8.6".
        output: the folder that gets the bundle's folder.
        set: the model's configuration, as `--set`.
        component: a part of a registered model, for example "h-module" of "hrm-27m".
        series: the table `[series]` of a configuration file.
        quiet: show no progress on stderr.

    Raises:
        UsageError: bad input of any kind, or a bundle of that name is there and `force` is not given.
        VerificationError: parity or the accuracy budget is missed.
        LatencyError: a published latency budget is missed.
        UnsupportedError: the target's device cannot compute in that precision.
        MissingDependencyError: the extra `build` is not installed.

    No new bundle is left where it raises.
    """
    from tsexport.options import merge, read_config
    from tsexport.pipeline import build_bundle

    given = {
        "model": model,
        "target": target,
        "output": Path(output),
        "device": device,
        "checkpoint": _path(checkpoint),
        "settings": dict(set or {}),
        "component": component,
        "inputs": tuple(inputs) if inputs else None,
        "calibration": _path(calibration),
        "calibration_table": _path(calibration_table),
        "evaluation": _path(evaluation),
        "series": series,
        "metric": metric,
        "max_degradation": max_degradation,
        "max_output_error": max_output_error,
        "include_preprocessing": include_preprocessing,
        "objective": objective,
        "batches": tuple(batch) if batch else None,
        "runtime": runtime,
        "formats": tuple(formats) if formats else None,
        "selection": _path(selection),
        "table": _path(table),
        "atol": atol,
        "rtol": rtol,
        "threads": threads,
        "seconds": seconds,
        "search_seconds": search_seconds,
        "prune": prune,
        "max_prune_degradation": max_prune_degradation,
        "rollout": rollout,
        "seed": seed,
        "name": name,
        "force": force,
    }
    return build_bundle(merge(read_config(Path(config)) if config else {}, given), quiet=quiet)


def load(
    bundle: StrPath | Bundle,
    precision: str | None = None,
    runtime: str | None = None,
    threads: int | None = None,
    *,
    key: StrPath | None = None,
) -> Session:
    """Load an artifact of a bundle, ready to run.

    Args:
        bundle: a folder, a .tar, .tar.gz or .zip of one, or an open bundle.
        precision: "fp32", "int8", ...: the fastest artifact of that precision, instead of the selected one.
        runtime: the fastest artifact on that runtime; with `precision`, the fastest that is both.
        threads: of one session; by default as many as it was measured with, at most the cores here.
        key: a PEM file with the Ed25519 public key that the bundle must be signed by; any bundle is loaded without.

    Raises:
        BundleError: the bundle is damaged, or not signed by that key.
        MissingDependencyError: the runtime is not installed, or cryptography where a key is given; names the pip
            command and what else could run.
        UsageError: the bundle has no such artifact, `threads` is below 1, or the key cannot be used.
    """
    from tsexport.bundles.loading import load_session

    return load_session(bundle, precision=precision, runtime=runtime, threads=threads, key=key)


def verify(bundle: StrPath | Bundle, *, key: StrPath | None = None) -> VerificationReport:
    """Check a bundle's digests, its signature where a key is given, and its golden outputs on every runtime here.

    Args:
        bundle: a folder, a .tar, .tar.gz or .zip of one, or an open bundle.
        key: a PEM file with the Ed25519 public key that the bundle must be signed by.

    Raises:
        BundleError: changed, missing or added files, or not signed by that key.
        UsageError: the key cannot be used.
        MissingDependencyError: a key was given and cryptography is not installed; names the pip command.
        GoldenError: an artifact misses its golden outputs.
        NoRuntimeError: no runtime is installed for any artifact.
    """
    return verify_bundle(bundle, key=key)


def sign(bundle: StrPath | Bundle, key: StrPath, *, force: bool = False) -> "SignedBundle":
    """Sign a bundle's SHA256SUMS, and with it every file outside measurements/ and the report.

    Args:
        bundle: a bundle's folder.
        key: a PEM file with an Ed25519 private key, without a password.
        force: replace a signature that is there.

    Raises:
        BundleError: the bundle is damaged.
        UsageError: it is an archive, is signed already, or cannot be written to, or the key cannot be used.
        MissingDependencyError: cryptography is not installed; names the pip command.
    """
    from tsexport.bundles.signing import sign_bundle

    return sign_bundle(bundle, key, force=force)


def check(model: StrPath, target: str, *, device: str | None = None) -> "DeviceReport":
    """Return whether a target's TensorRT takes an ONNX file and computes what it says, node by node, without either.

    Nothing is raised for a node that is refused: see the report's `accepted`, `errors` and `findings`.

    Args:
        model: an .onnx file, judged as it stands.
        target: one with TensorRT, such as "jetson-int8".
        device: the target's device, such as "xavier-nx@jetpack-5.1" or "@tensorrt-8.6".

    Raises:
        UsageError: an unknown target or device, a target without TensorRT, no file or a damaged one.
        UnsupportedError: the device has no arithmetic of that precision.
        MissingDependencyError: the extra `build` is not installed.
    """
    from tsexport.checking import check_file

    return check_file(Path(model), target, device)


def estimate(
    model: str,
    target: str,
    *,
    batch: int = 1,
    device: str | None = None,
    checkpoint: StrPath | None = None,
    set: Mapping[str, Any] | None = None,
    component: str | None = None,
    config: StrPath | None = None,
    inputs: Sequence[TensorSpec] | None = None,
    seed: int | None = None,
) -> "MemoryEstimate":
    """Return how much memory a model takes on a target at a batch size, and the largest batch that fits; estimated.

    Nothing is built: the model is exported in memory, and its graph is counted.

    Args:
        model: a registered name, "module:factory", or an .onnx, TorchScript or .pt2 file.
        target: such as "cpu4-int8" or "jetson-fp16".
        batch: from 1 on.
        device, checkpoint, set, component, config, inputs, seed: as of `build`.

    Raises:
        UsageError: unknown names, files that are not there, or a batch below 1.
        UnsupportedError: the device has no arithmetic of the target's precision.
        ExportError: the model cannot be exported to ONNX.
        MissingDependencyError: the packages of the extra `build` are not all here.
    """
    from tsexport.estimating import estimate_memory, options_of

    given = {"device": device, "checkpoint": _path(checkpoint), "component": component, "seed": seed}
    return estimate_memory(
        options_of(
            model, target, batch, _path(config), settings=dict(set or {}), inputs=tuple(inputs or ()), over=given
        )
    )


def benchmark(
    bundle: StrPath | Bundle,
    *,
    batch: Sequence[int] | None = None,
    threads: int | None = None,
    table: StrPath | None = None,
    record: StrPath | None = None,
    commit: str | None = None,
    container: bool = False,
) -> BenchmarkResult:
    """Measure every artifact of a bundle on every runtime here, and judge the published rows.

    Args:
        bundle: a folder, a .tar, .tar.gz or .zip of one, or an open bundle.
        batch: batch sizes; 1, 10 and 32 by default.
        threads: by default as many as the bundle was built with, at most the cores here; each bound to a CPU.
        table: a latency table of your own, in place of the published ones.
        record: a folder that keeps the result, as `<bundle>/<machine>/<time>-<commit>-<digest>.json`, for `history`.
        commit: what it is kept under; by default the commit of the git repository here.
        container: measure within the published container's limits, 3.5 CPUs and 12 GiB (cpu4 only).

    Raises:
        BundleError: the bundle is damaged.
        ConfigurationError: the table is not one.
        UsageError: a value is out of range, or a container is asked for and the bundle is for no cpu4.
        NoRuntimeError: no runtime here runs any of its artifacts.
        InconclusiveError: this machine has less than the container, or none can be made here.
    """
    from tsexport.bench.measure import BATCHES

    return benchmark_bundle(
        bundle,
        batches=tuple(batch or BATCHES),
        threads=threads,
        table=_path(table),
        record=_path(record),
        commit=commit,
        in_container=container,
    )


def history(
    folder: StrPath, *, bundle: str | None = None, machine: str | None = None, min_change: float = 0.05
) -> "History":
    """Return recorded results over time: a series for each artifact, runtime, batch size and machine, and its changes.

    Args:
        folder: what `benchmark` was given as `record`.
        bundle: this bundle's alone.
        machine: those of the machine alone whose id begins so.
        min_change: smaller relative changes are left out; 0.05 is 5 %.

    Raises:
        UsageError: no folder, no recordings in it, or none of that bundle or machine.
    """
    from tsexport.measurements.history_series import read_history

    return read_history(Path(folder), bundle=bundle, machine=machine, min_change=min_change)


def compare(
    base: StrPath | Bundle,
    candidate: StrPath | Bundle,
    *,
    threshold: float | str = 0.05,
    threads: int = 1,
    batch: int = 1,
    max_seconds: float = 120.0,
    seed: int = 0,
) -> "ComparisonResult":
    """Time the selected artifacts of two bundles against each other here and now; see the record's `verdict`.

    Nothing is raised for a regression: `verdict` says so, and `exit_code` is what the command ends with.

    Args:
        base, candidate: folders, a .tar, .tar.gz or .zip of one, or open bundles, of one model.
        threshold: the change of latency that matters, as a fraction (0.05) or as text ("5%").
        threads: of both sides, each bound to as many CPUs.
        batch: samples of one call.
        max_seconds: for everything; what is not decided by then is inconclusive.
        seed: of the bootstrap.

    Raises:
        BundleError: a bundle is damaged.
        UsageError: the bundles are of different models, inputs or outputs, or a value is out of range.
        NoRuntimeError: the runtime of a selected artifact is not installed.
        InconclusiveError: the target of a bundle is not this machine, or a measuring process failed.
    """
    from tsexport.measurements.comparing import compare_bundles

    return compare_bundles(
        base, candidate, threshold=threshold, threads=threads, batch=batch, max_seconds=max_seconds, seed=seed
    )


def diff(a: StrPath | Bundle, b: StrPath | Bundle) -> "BundleDiff":
    """Return what differs between two bundles, and why; nothing in them is run.

    Args:
        a: a folder, a .tar, .tar.gz or .zip of one, or an open bundle.
        b: the same.

    Raises:
        BundleError: a bundle is damaged.
        UsageError: nothing is there, or it is no bundle.
    """
    from tsexport.bundles.diffing import diff_bundles

    return diff_bundles(a, b)


def attach(bundle: StrPath | Bundle, results: StrPath) -> "AttachedResults":
    """Bring what the device kit measured on a device into its bundle; see the record's measurements and verdicts.

    Args:
        bundle: a bundle's folder.
        results: the folder that the kit's measure.sh wrote.

    Raises:
        BundleError: the bundle is damaged.
        DataError: the results are damaged, or belong to another bundle, device or version.
        UsageError: the bundle is an archive or for a CPU, cannot be written to, or holds these results already.
        MissingDependencyError: jinja2 is not installed; names the pip command.
    """
    from tsexport.device.attaching import attach_results

    return attach_results(bundle, results)


def report(*bundles: StrPath | Bundle, output: StrPath) -> Path:
    """Write one self-contained page about bundles, whole or not at all; return its path.

    Raises:
        BundleError: a bundle is damaged.
        UsageError: the file cannot be written.
        MissingDependencyError: jinja2 is not installed; names the pip command.
    """
    from tsexport.reports.writing import report_bundles

    return report_bundles(bundles, output)
