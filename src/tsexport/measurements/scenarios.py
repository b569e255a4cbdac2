"""`tsexport bench --scenario`: a bundle's selected artifact under SingleStream, Offline or Server load, and its memory.

The bound of Server is the user's, else the published latency of the model at batch 1 on cpu4, else the tightest service
level of the tables.  Memory fails where the second half of 10,000 calls adds more than 1 MiB.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tsexport.bench.affinity import threads_text
from tsexport.bench.fingerprint import fingerprint
from tsexport.bench.kept_records import require_folder
from tsexport.bench.memory import GROWTH_CALLS, measure_growth, measure_peak
from tsexport.bench.memory_wire import Progress
from tsexport.bench.scenario_records import FOLDER, SCENARIOS, Memory, ScenarioName, ScenarioRecord, write_scenario
from tsexport.bench.scenarios import (
    OFFLINE_BATCHES,
    ScenarioProcess,
    ServerTerms,
    offline,
    server,
    single_stream,
)
from tsexport.bench.statistics import P99_SAMPLES
from tsexport.bench.tables import latency_budgets, load_tables
from tsexport.bundles.bundle import Bundle, open_bundle
from tsexport.bundles.golden import INPUTS, read_golden
from tsexport.bundles.loading import choose_artifact, cores_here
from tsexport.bundles.manifest import Manifest
from tsexport.bundles.structure import check_structure
from tsexport.errors import NoRuntimeError, UsageError, did_you_mean
from tsexport.measurements.adding import add_records, require_unpacked
from tsexport.runtimes.registry import list_statuses
from tsexport.turns import measuring_alone

Say = Callable[[str], None]
MOST_SERVER_BATCH = 64
LONGEST_SECONDS = 86_400.0


@dataclass(frozen=True)
class ScenarioOptions:
    """How a scenario is run.

    seconds: at least, for SingleStream, for each batch size of Offline, and for each rate of Server; Server's rates
        take longer where a p99 needs it.
    qps: Server's rate; None looks for the highest valid one.
    p99_ms: Server's bound; None takes the published one.
    max_batch: how many waiting queries Server answers together at most.
    batch: of memory.
    growth_calls: of memory.
    threads: by default as many as the bundle was built with, at most the cores here.
    runtime: by default the selected artifact on its own.
    seed: of arrivals.
    """

    seconds: float = 8.0
    qps: float | None = None
    p99_ms: float | None = None
    max_batch: int = 1
    batch: int = 1
    growth_calls: int = GROWTH_CALLS
    threads: int | None = None
    runtime: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("seconds", self.seconds), ("qps", self.qps), ("p99-ms", self.p99_ms)):
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{name} is {value:g}; allowed are numbers above 0")
        if self.seconds > LONGEST_SECONDS:
            raise UsageError(f"seconds is {self.seconds:g}; allowed are at most {LONGEST_SECONDS:g}, a day")
        if self.qps is not None and P99_SAMPLES / self.qps > LONGEST_SECONDS:
            raise UsageError(
                f"qps is {self.qps:g}; a p99 needs {P99_SAMPLES} queries, which would take more than a day",
                next_step=f"allowed are rates from {P99_SAMPLES / LONGEST_SECONDS:.2g} queries/s on",
            )
        counts = (("batch", self.batch), ("threads", self.threads), ("growth-calls", self.growth_calls))
        for name, count in counts:
            if count is not None and count < 1:
                raise UsageError(f"{name} is {count}; allowed are whole numbers from 1 on")
        if not 1 <= self.max_batch <= MOST_SERVER_BATCH:
            raise UsageError(f"max-batch is {self.max_batch}; allowed are whole numbers from 1 to {MOST_SERVER_BATCH}")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"seed is {self.seed}; allowed are whole numbers from 0 to {2**32 - 1}")


def run_scenario(
    bundle: str | Path | Bundle,
    scenario: str,
    options: ScenarioOptions,
    *,
    record: Path | None = None,
    attach: bool = False,
    say: Say = lambda line: None,
) -> ScenarioRecord:
    """Run one scenario on a bundle's selected artifact, in a fresh process.

    Args:
        bundle: a folder, an archive, or an open bundle; its digests are checked first.
        scenario: single-stream, offline, server or memory.
        record: a folder that keeps the result, as `<bundle>/scenarios/<scenario>-<machine>.json`.
        attach: keep the result in the bundle itself, as `measurements/scenarios/<scenario>-<machine>.json`, and on its
            report; an earlier one of the scenario on this machine is replaced.
        say: told what is running, and how long it will take.

    Raises:
        UsageError: an unknown scenario, a runtime that the bundle is not for, a folder that cannot be written to, or a
            bundle that nothing can be attached to.
        BundleError: the bundle is damaged.
        NoRuntimeError: the runtime is not installed here.
        InconclusiveError: the process died, or did not answer in time.
    """
    name = _named(scenario)
    if not isinstance(bundle, Bundle):
        with open_bundle(bundle) as opened:
            return run_scenario(opened, scenario, options, record=record, attach=attach, say=say)
    if attach:
        require_unpacked(bundle)
    check_structure(bundle)
    if record is not None:
        require_folder(record)
    with measuring_alone(f"{bundle.name}: {name}", say):
        result = _run(bundle, name, options, say)
    if record is not None:
        write_scenario(result, record / bundle.manifest.name / FOLDER)
    if attach:
        add_records(bundle.path, lambda folder: (write_scenario(result, folder / FOLDER),))
    return result


def _named(scenario: str) -> ScenarioName:
    if scenario not in SCENARIOS:
        raise UsageError(
            f"unknown scenario {scenario!r}{did_you_mean(scenario, SCENARIOS)}; scenarios are {', '.join(SCENARIOS)}"
        )
    return scenario


def _run(bundle: Bundle, scenario: ScenarioName, options: ScenarioOptions, say: Say) -> ScenarioRecord:
    manifest, selection = bundle.manifest, bundle.selection
    choice = choose_artifact(manifest, selection, None, options.runtime)
    if choice.runtime not in {status.name for status in list_statuses() if status.available}:
        raise NoRuntimeError(
            f"{choice.artifact} of {manifest.name} runs on {choice.runtime}, which is not installed here",
            next_step="see `tsexport runtimes` for the pip command, or name another with --runtime",
        )
    artifact, runtime = bundle.artifact(choice.artifact), choice.runtime
    threads = min(options.threads or selection.threads, cores_here())
    feeds = read_golden(bundle.path, INPUTS, artifact.inputs, manifest.golden.samples)
    base = ScenarioRecord(fingerprint(), manifest.name, choice.artifact, runtime, threads, scenario)
    say(f"{scenario}: {choice.artifact} on {runtime}, {threads_text(threads)}")
    if scenario == "memory":
        peak = measure_peak(artifact, runtime, threads=threads, batch=options.batch)
        growth = measure_growth(
            artifact,
            runtime,
            feeds=feeds,
            threads=threads,
            batch=options.batch,
            calls=options.growth_calls,
            tell=lambda progress: say(_calls_left(progress)),
        )
        return replace(base, memory=Memory(options.batch, peak, growth))
    with ScenarioProcess(artifact, runtime, threads, feeds) as process:
        if scenario == "single-stream":
            say(f"about {options.seconds:.0f} s, after the warm-up")
            return replace(base, single_stream=single_stream(process, options.seconds))
        if scenario == "offline":
            sizes = len(OFFLINE_BATCHES)
            say(f"{sizes} batch sizes for {options.seconds:g} s each: about {sizes * options.seconds:.0f} s")
            return replace(base, offline=offline(process, options.seconds))
        return replace(base, server=server(process, _terms(manifest, options), options.qps, say))


def _calls_left(progress: Progress) -> str:
    done = f"{progress.done:,} of {progress.calls:,} calls"
    return done if progress.left_s is None else f"{done}; about {progress.left_s:.0f} s left"


def _terms(manifest: Manifest, options: ScenarioOptions) -> ServerTerms:
    bound, source = (options.p99_ms, "as asked") if options.p99_ms is not None else _published_bound(manifest)
    return ServerTerms(bound, source, options.seconds, max_batch=options.max_batch, seed=options.seed)


def _published_bound(manifest: Manifest) -> tuple[float, str]:
    """Return Server's bound where none was asked for, and where it is from."""
    model = manifest.model
    for budget in latency_budgets(model.name, model.family, model.component):
        if budget.device == "cpu4" and budget.batch == 1 and budget.via is None and budget.max_ms is not None:
            return budget.max_ms, f"published for {budget.model} on cpu4"
    level = min(load_tables().service_level, key=lambda one: one.max_ms)
    return level.max_ms, f"service level {level.name}"
