"""Measure every artifact of bundles on this machine, and judge them against the latency tables."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from tsexport.bench.affinity import choose_cpus
from tsexport.bench.container import container, published_limits
from tsexport.bench.figure_verdicts import ArtifactSize, FigureVerdict, Subject, judge_figures
from tsexport.bench.figures import figures_for
from tsexport.bench.fingerprint import fingerprint
from tsexport.bench.kept_records import (
    KeptArtifact,
    KeptRecord,
    check_commit,
    require_folder,
    time_text,
    write_kept,
)
from tsexport.bench.measure import BATCHES, measure
from tsexport.bench.noise import NoiseWatch
from tsexport.bench.process import WORKER_COMMAND
from tsexport.bench.race import Progress
from tsexport.bench.records import MachineRecord
from tsexport.bench.tables import LatencyTables, latency_budgets, load_tables
from tsexport.bench.use_cases import UseCaseAnswer, answer_use_cases
from tsexport.bench.verdicts import CPU4, exit_code, judge
from tsexport.bundles.bundle import Bundle, open_bundle
from tsexport.bundles.golden import INPUTS, read_golden
from tsexport.bundles.loading import cores_here
from tsexport.bundles.manifest import Manifest
from tsexport.bundles.structure import check_structure
from tsexport.errors import UsageError
from tsexport.measurements.history_commit import commit_here
from tsexport.measurements.timing_pairs import TimingPairs, timing_pairs_here
from tsexport.targets import Target
from tsexport.turns import measuring_alone
from tsexport.types import Measurement


@dataclass(frozen=True)
class BenchmarkResult:
    """What one bundle did here.

    `use_cases` say what each artifact is fast enough for, `figures` are the tables' other numbers (sizes, memory,
    gains), judged.  `exit_code` is 4 where a row is missed, 6 where none could be judged, else 0; descriptions and use
    cases decide neither.  `kept` is the file that holds the result, None where it was not asked for.  `device` is what
    the machine stood for in the tables: "cpu4", or its GPU ("h200").
    """

    bundle: str
    model: str
    record: MachineRecord
    use_cases: tuple[UseCaseAnswer, ...]
    figures: tuple[FigureVerdict, ...]
    exit_code: int
    kept: Path | None = None
    device: str = CPU4

    @property
    def title(self) -> str:
        """The bundle, and the CPU or GPU that it was measured on."""
        machine = self.record.machine
        if self.device != CPU4:
            return f"{self.bundle} on {machine.gpu}"
        return f"{self.bundle} on {machine.cpu_model}, {machine.instruction_set}"


def benchmark_bundle(
    bundle: str | Path | Bundle,
    *,
    batches: Sequence[int] = BATCHES,
    threads: int | None = None,
    max_seconds: float = 8.0,
    table: Path | None = None,
    record: Path | None = None,
    commit: str | None = None,
    in_container: bool = False,
    progress: Progress | None = None,
) -> BenchmarkResult:
    """Measure every artifact of a bundle on every runtime here, and judge the published rows.

    Args:
        bundle: a folder, an archive, or an open bundle; its digests are checked first.
        batches: batch sizes.
        threads: by default as many as it was built with; at most the cores here (and in the container), and those of
            the target.  The processes are bound to as many CPUs, where the operating system can.
        max_seconds: for each artifact, runtime and batch size.
        table: a latency table in place of the published ones.
        record: a folder that keeps the result, as `<bundle>/<machine>/<time>-<commit>-<digest>.json`.
        commit: what `record` files it under; by default the commit of the git repository here.
        in_container: measure within the published container's limits, which are for cpu4.
        progress: told after each step.

    Raises:
        BundleError: the bundle is damaged.
        ConfigurationError: the table is not one.
        UsageError: a value is out of range, a file or folder cannot be read or written, or a container is asked for
            and the bundle is for no cpu4.
        NoRuntimeError: no runtime here runs any of its artifacts.
        InconclusiveError: this machine has less than the container, or none can be made here.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; allowed are whole numbers from 1 on")
    if not 0 < max_seconds < float("inf"):
        raise UsageError(f"seconds is {max_seconds:g}; allowed are numbers above 0")
    if commit is not None:
        check_commit(commit)
    tables = load_tables(table)  # before minutes are spent on measuring
    if not isinstance(bundle, Bundle):
        with open_bundle(bundle) as opened:
            return benchmark_bundle(
                opened,
                batches=batches,
                threads=threads,
                max_seconds=max_seconds,
                table=table,
                record=record,
                commit=commit,
                in_container=in_container,
                progress=progress,
            )
    check_structure(bundle)
    if record is not None:
        require_folder(record)
    manifest = bundle.manifest
    _check_cpu4(manifest.target, threads, in_container)
    result, timed = _measured(bundle, batches, threads, max_seconds, in_container, progress)
    model = manifest.model
    budgets = latency_budgets(model.name, model.family, model.component, tables=tables)
    verdicts = judge(budgets, result.measurements, machine=result.machine, device=timed.device)
    result = replace(result, verdicts=verdicts, service_levels=tables.service_level)
    use_cases = answer_use_cases(result.service_levels, result.measurements)
    # The tables' figures of speed and memory are a CPU's, and those of files need no measurement.
    figures = figures_of_bundle(manifest, () if timed.on_gpu else result.measurements, tables)
    kept = None
    if record is not None:
        kept = write_kept(_kept(manifest, result, use_cases, figures, commit), record)
    code = _exit_code(exit_code(result.verdicts), figures)
    return BenchmarkResult(manifest.name, model.name, result, use_cases, figures, code, kept, timed.device)


def _measured(
    bundle: Bundle,
    batches: Sequence[int],
    threads: int | None,
    max_seconds: float,
    in_container: bool,
    progress: Progress | None,
) -> tuple[MachineRecord, TimingPairs]:
    """Return a bundle's measurements, with the noise meanwhile and the container, and what they are of; not judged."""
    feeds = read_golden(bundle.path, INPUTS, bundle.manifest.artifacts[0].inputs, bundle.manifest.golden.samples)
    with ExitStack() as stack:
        machine, limits = fingerprint(), None
        command: tuple[str, ...] = WORKER_COMMAND
        if in_container:
            made = stack.enter_context(container(published_limits(), machine))
            machine, limits, command = made.machine, made.limits, made.worker_command
        timed = timing_pairs_here(bundle.manifest, machine)
        used = min(threads or bundle.selection.threads, cores_here(), machine.usable_cores)
        say = (lambda line: progress(line, 0.0)) if progress is not None else (lambda line: None)
        stack.enter_context(measuring_alone(bundle.name, say))
        watch = NoiseWatch(choose_cpus(used))
        measurements = tuple(
            measurement
            for entry, runtime in timed.pairs
            for measurement in measure(
                bundle.artifact(entry.name),
                runtime,
                feeds=feeds,
                threads=used,
                machine=machine,
                batches=batches,
                max_seconds=max_seconds,
                cpus=watch.cpus,
                command=command,
                watch=watch,
                progress=progress,
            )
        )
        noise = watch.record()
    return MachineRecord(machine, measurements, noise=noise, container=limits), timed


def _check_cpu4(target: Target, threads: int | None, in_container: bool) -> None:
    """Raise where more threads are asked for than the target has cores, or a container for what is no cpu4."""
    if threads is not None and threads > target.cores:
        raise UsageError(
            f"threads is {threads}; {target.name} has {target.cores} cores",
            next_step=f"use --threads {target.cores} or fewer",
        )
    if in_container and target.instruction_set == "gpu":
        raise UsageError(
            f"the published container is a limit of cpu4, and the bundle is for {target.name}",
            next_step="measure without --container",
        )


def figures_of_bundle(
    manifest: Manifest, measurements: tuple[Measurement, ...], tables: LatencyTables
) -> tuple[FigureVerdict, ...]:
    """Return the tables' sizes, memory figures and gains of a bundle's model, judged by its files and measurements."""
    model = manifest.model
    removed = None if manifest.pruning is None else manifest.pruning.parameters.share_removed
    subject = Subject(
        parameters=model.parameters,
        artifacts=tuple(ArtifactSize(e.name, e.precision, e.format, e.size_bytes) for e in manifest.artifacts),
        measurements=measurements,
        config=model.config,
        pruned_parameters=None if removed is None else 1 - removed,
    )
    return judge_figures(figures_for(tables, model.name, model.family, model.component), subject)


def _exit_code(of_rows: int, figures: Sequence[FigureVerdict]) -> int:
    """Return what rows and the budgets among the figures say; descriptions that are judged decide nothing."""
    budgets = {one.status for one in figures if one.figure.is_budget}
    if "missed" in budgets:
        return 4
    return 0 if of_rows == 6 and "met" in budgets else of_rows


def _kept(
    manifest: Manifest,
    result: MachineRecord,
    use_cases: tuple[UseCaseAnswer, ...],
    figures: tuple[FigureVerdict, ...],
    commit: str | None,
) -> KeptRecord:
    here = commit_here(Path.cwd()) if commit is None else None
    return KeptRecord(
        bundle=manifest.name,
        model=manifest.model.name,
        family=manifest.model.family,
        component=manifest.model.component,
        recorded_at=time_text(datetime.now(UTC)),
        commit=commit or (here.sha if here else None),
        modified=here.modified if here else False,
        artifacts=tuple(KeptArtifact(e.name, e.precision, e.sha256, e.size_bytes) for e in manifest.artifacts),
        record=result,
        use_cases=use_cases,
        figures=figures,
    )
