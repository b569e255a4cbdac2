"""`tsexport compare`: the selected artifacts of two bundles against each other, on this machine, now.

Both run on their own runtimes, on the golden inputs of BASE, with as many threads as are asked for (one by default: a
gate compares builds, and a second thread brings more noise than knowledge).  What is compared must be the same model
with the same inputs and outputs; precision, target, runtime and configuration may differ, since those are what one
wants to know about.
"""

import re
import time
from contextlib import ExitStack
from pathlib import Path

from tsexport.bench.affinity import choose_cpus
from tsexport.bench.compare_records import ComparedSide, ComparisonResult, ComparisonRun, ComparisonVerdict
from tsexport.bench.comparing import Contender, Limits, Progress, Setting, compare_contenders
from tsexport.bench.fingerprint import fingerprint
from tsexport.bench.noise import NoiseWatch
from tsexport.bundles.bundle import Bundle, open_bundle
from tsexport.bundles.golden import INPUTS, read_golden
from tsexport.bundles.loading import cores_here
from tsexport.bundles.structure import check_structure
from tsexport.bundles.verification import install_hint
from tsexport.errors import InconclusiveError, NoRuntimeError, UsageError
from tsexport.runtimes.registry import list_statuses
from tsexport.targets import InstructionSet, Target, host_cpu
from tsexport.turns import measuring_alone
from tsexport.types import TensorSpec
from tsexport.wording import count_text

THRESHOLD = 0.05
MAX_SECONDS = 120.0
_X86: tuple[InstructionSet, ...] = ("generic", "avx2", "avx512-vnni", "amx")
"""Each runs what was built for those before it."""
_PERCENT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*%\s*")


def compare_bundles(
    base: str | Path | Bundle,
    candidate: str | Path | Bundle,
    *,
    threshold: float | str = THRESHOLD,
    threads: int = 1,
    batch: int = 1,
    max_seconds: float = MAX_SECONDS,
    seed: int = 0,
    progress: Progress | None = None,
) -> ComparisonResult:
    """Compare the selected artifacts of two bundles.

    Args:
        base, candidate: folders, archives, or open bundles; their digests are checked first.
        threshold: the change that matters, as a fraction (0.05) or as text ("5%").
        threads: of both sides, bound to as many CPUs.
        batch: samples of one call.
        max_seconds: for everything, from the turn on this machine on; what is not decided by then is inconclusive.
        seed: of the bootstrap.
        progress: told what is being done, and the fraction of `max_seconds` that is spent.

    Raises:
        BundleError: a bundle is damaged.
        UsageError: the bundles are of different models, inputs or outputs, or a value is out of range.
        NoRuntimeError: a selected artifact's runtime is not installed.
        InconclusiveError: a bundle's target is not this machine, or a measuring process failed.
    """
    fraction = parse_threshold(threshold)
    if threads < 1 or batch < 1 or seed < 0:
        raise UsageError(
            f"threads and batch are whole numbers from 1 on, seed from 0 on; given {threads}, {batch} and {seed}"
        )
    if not 0 < max_seconds < float("inf"):
        raise UsageError(f"max-seconds is {max_seconds:g}; allowed are numbers above 0")
    with ExitStack() as stack:
        sides = tuple(_opened(one, stack) for one in (base, candidate))
        for bundle in sides:
            check_structure(bundle)
        require_same_model(*sides)
        for bundle in sides:
            _require_runnable(bundle, threads)
        manifest = sides[0].manifest
        feeds = read_golden(sides[0].path, INPUTS, manifest.artifacts[0].inputs, manifest.golden.samples)
        say = (lambda line: progress(line, 0.0)) if progress is not None else (lambda line: None)
        stack.enter_context(measuring_alone(f"{sides[0].name} and {sides[1].name}", say))
        began = time.perf_counter()
        setting = Setting(feeds, batch, threads, choose_cpus(threads))
        watch = NoiseWatch(setting.cpus)
        runs = compare_contenders(
            _contender(sides[0]),
            _contender(sides[1]),
            setting,
            Limits(fraction, max_seconds, seed),
            watch=watch,
            progress=progress,
        )
        last = runs[-1]
        verdict, reason = conclude(runs)
        return ComparisonResult(
            base=_side(sides[0], last.base_medians_ms),
            candidate=_side(sides[1], last.candidate_medians_ms),
            verdict=verdict,
            reason=reason,
            confirmed=verdict == "regression",
            ratio=last.ratio,
            threshold=fraction,
            noise_floor=last.noise_floor,
            processes=last.processes,
            threads=threads,
            cpus=setting.cpus,
            batch=batch,
            seconds=time.perf_counter() - began,
            runs=runs,
            machine=fingerprint(),
            noise=watch.record(),
        )


def parse_threshold(given: float | str) -> float:
    """Return a threshold as a fraction: 0.05 for 0.05, "0.05", "5%" and "5 %".

    Raises:
        UsageError: no such text, or not between 0 and 1.
    """
    allowed = "allowed are changes above 0 and below 100 %, written 5% or 0.05"
    try:
        percent = _PERCENT.fullmatch(given) if isinstance(given, str) else None
        value = float(percent[1]) / 100 if percent else float(given)
    except ValueError:
        raise UsageError(f"threshold is {given!r}; {allowed}") from None
    if not 0 < value < 1:
        raise UsageError(f"threshold is {given}; {allowed}")
    return value


def conclude(runs: tuple[ComparisonRun, ...]) -> tuple[ComparisonVerdict, str]:
    """Return the verdict of one run, or of two where the first was red: a regression only where both are."""
    if len(runs) == 1:
        return runs[0].verdict, runs[0].reason
    first, second = runs
    if second.verdict == "regression":
        return "regression", f"{second.reason}; a first run said {first.ratio}"
    return "inconclusive", f"a first run said {first.ratio}, and a second one did not confirm it: {second.reason}"


def require_same_model(base: Bundle, candidate: Bundle) -> None:
    """Raise where two bundles do not hold the same model with the same inputs and outputs.

    Raises:
        UsageError: names what differs.
    """
    one, other = base.manifest.model, candidate.manifest.model
    differences = [
        f"{what} {ours} and {theirs}"
        for what, ours, theirs in (
            ("model", one.name, other.name),
            ("component", one.component or "none", other.component or "none"),
            ("inputs", _listed(_inputs(base)), _listed(_inputs(candidate))),
            ("outputs", _listed(_outputs(base)), _listed(_outputs(candidate))),
        )
        if ours != theirs
    ]
    if differences:
        raise UsageError(
            f"{base.name} and {candidate.name} cannot be compared: they have {'; '.join(differences)}",
            next_step="compare two bundles of one model that take and give the same tensors",
        )


def _inputs(bundle: Bundle) -> tuple[TensorSpec, ...]:
    return bundle.manifest.artifact(bundle.selection.artifact).inputs


def _outputs(bundle: Bundle) -> tuple[TensorSpec, ...]:
    return bundle.manifest.artifact(bundle.selection.artifact).outputs


def _listed(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(map(str, specs))


def _opened(bundle: str | Path | Bundle, stack: ExitStack) -> Bundle:
    return bundle if isinstance(bundle, Bundle) else stack.enter_context(open_bundle(bundle))


def _require_runnable(bundle: Bundle, threads: int) -> None:
    """Raise where the selected artifact does not run here as on its target, or not with so many threads."""
    target, selection = bundle.manifest.target, bundle.selection
    if reason := why_not_here(target):
        raise InconclusiveError(
            f"{bundle.name} is for {target.device_name}, {reason}: {selection.artifact} would run here in simulation "
            "only, which says nothing about its latency",
            next_step="compare on a machine of the target's kind",
        )
    statuses = {status.name: status for status in list_statuses()}
    status = statuses.get(selection.runtime)
    if status is None or not status.available:
        raise NoRuntimeError(
            f"{selection.artifact} of {bundle.name} runs on {selection.runtime}, which is not usable here"
            + (f": {status.reason}" if status and status.reason else ""),
            next_step=install_hint((status,)) if status else "see `tsexport runtimes`",
        )
    if threads > target.cores:
        raise UsageError(
            f"threads is {threads}; {target.name} has {target.cores} cores",
            next_step=f"use --threads {target.cores} or fewer",
        )
    if threads > (most := cores_here()):
        raise UsageError(
            f"threads is {threads}; this process may use {count_text(most, 'core')}",
            next_step=f"use --threads {most} or fewer, or a machine with more cores",
        )


def why_not_here(target: Target) -> str:
    """Return why this machine does not run what was built for a target, or ""."""
    here = host_cpu().instruction_set
    if target.instruction_set == "gpu":
        return "which this machine's CPU is not"
    if target.instruction_set in _X86 and here in _X86:
        return "" if _X86.index(target.instruction_set) <= _X86.index(here) else f"and this CPU has {here} only"
    return "" if target.instruction_set in (here, "generic") else f"and this CPU is {here}"


def _contender(bundle: Bundle) -> Contender:
    selection = bundle.selection
    return Contender(bundle.artifact(selection.artifact), selection.runtime)


def _side(bundle: Bundle, medians_ms: tuple[float, ...]) -> ComparedSide:
    selection = bundle.selection
    return ComparedSide(
        given=str(bundle.source),
        bundle=bundle.manifest.name,
        artifact=selection.artifact,
        runtime=selection.runtime,
        precision=bundle.manifest.artifact(selection.artifact).precision,
        medians_ms=medians_ms,
    )
