"""`tsexport serve` under load: requests a second, errors, percentiles, memory; the rows of the tables over HTTP.

patchtst-cpu is served from its cpu4-int8 bundle: the selected artifact, and the fastest one in fp32, which the
published rows are for.  wrk keeps 10 connections busy, on the same cores as the server, for 30 s after a warm-up of
5 s; each sends its next request when it has an answer, so that what would wait outside of the server is not seen.  At
most two cores are used, by both together, whatever the machine has.

Goals: 100 requests a second over /predict (10 are published), no errors, and less than 5 MiB more resident memory.

How to run, on a quiet machine with wrk, from a checkout with the extras `build` and `serve` installed:

    python bench/suites/serve_load.py [--bundle DIR] [--seconds 30] [--connections 10]

Results go to bench/results/serve_load-<instruction set>.json and .md.  A published row is met on fewer cores than its
own, and missed on fewer decides nothing.  The published CPU loads are ranges and no budgets: they stand beside what was
measured.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

import tsexport
from tsexport.bench.fingerprint import Machine, fingerprint
from tsexport.bench.rows import verdict_rows
from tsexport.bench.statistics import Summary
from tsexport.bench.suites.http_load import Load, PacedLoad, ServerProcess, calls_of, find_wrk, rates_of, same_answer
from tsexport.bench.suites.report import load_text, machine_text, megabytes, milliseconds, publish, results_path, table
from tsexport.bench.tables import CpuLoadRow, latency_budgets, load_tables
from tsexport.bundles.bundle import open_bundle
from tsexport.errors import InconclusiveError, TsexportError
from tsexport.types import Budget, Verdict

MODEL, FAMILY, TARGET = "patchtst-cpu", "transformer", "cpu4-int8"
CORES = 2
CPU4_CORES = 4
MIN_REQUESTS_PER_S = 100.0
MAX_GROWTH_BYTES = 5 * 2**20
WARMUP_S = 5.0
SAME = 1e-4
"""Of the largest value: the same inference in two processes."""
SCHEMA_VERSION = 1

Status = Literal["met", "missed", "not measured"]


@dataclass(frozen=True)
class Served:
    """One artifact behind the server: its loads, the single calls of `/predict`, and what it took when nearly idle."""

    artifact: str
    runtime: str
    precision: str
    threads: int
    batched: bool
    loads: tuple[Load, ...]
    single_calls: Summary
    paced: tuple[PacedLoad, ...]


@dataclass(frozen=True)
class Goal:
    """One of the project's own goals."""

    goal: str
    measured: str
    status: Status


@dataclass(frozen=True)
class Report:
    """Everything that one run measured."""

    suite: str
    machine: Machine
    model: str
    load_average: tuple[float, float]
    served: tuple[Served, ...]
    goals: tuple[Goal, ...]
    verdicts: tuple[Verdict, ...]
    cpu_load: tuple[CpuLoadRow, ...]
    schema_version: int = SCHEMA_VERSION


def serve_and_measure(
    bundle: Path, precision: str | None, folder: Path, seconds: float, connections: int, rates: Sequence[float]
) -> Served:
    """Serve an artifact of a bundle and put load on it.

    Raises:
        InconclusiveError: the server does not answer as the session does, or ended.
    """
    options = () if precision is None else ("--precision", precision)
    with tsexport.load(bundle, precision=precision) as session, np.load(bundle / "golden" / "inputs.npz") as golden:
        feeds = {spec.name: golden[spec.name][:1] for spec in session.inputs}
        expected = session.run(feeds)
    with ServerProcess(bundle, folder, *options) as server:
        model = server.start()
        calls = calls_of(model["name"], feeds)
        if not same_answer(server.answer(calls[0]), expected, SAME):
            raise InconclusiveError(f"{model['artifact']} answers otherwise over HTTP than in a session")
        loads = []
        for call in calls:
            print(f"{model['artifact']}, {call.name}: {seconds:g} s", file=sys.stderr)
            loads.append(
                server.load(call, connections=connections, seconds=seconds, warmup_seconds=min(WARMUP_S, seconds))
            )
        print(f"{model['artifact']}: single calls, and {len(rates)} low rates", file=sys.stderr)
        single = server.one_after_another(calls[0])
        paced = tuple(server.paced(calls[0], rate, seconds / 3) for rate in rates)
    return Served(
        model["artifact"], model["runtime"], model["precision"], model["threads"], model["batched"], tuple(loads),
        single, paced,
    )  # fmt: skip


def judge_goals(served: Served, comparable: bool) -> tuple[Goal, ...]:
    """Return the goals for the selected artifact, judged where model, time and connections are `comparable`."""
    predict = served.loads[0]
    errors, growth = sum(load.errors for load in served.loads), max(load.growth_bytes for load in served.loads)

    def judged(goal: str, measured: str, met: bool) -> Goal:
        return Goal(goal, measured, "not measured" if not comparable else "met" if met else "missed")

    return (
        judged(
            f"{MIN_REQUESTS_PER_S:g} requests a second over /predict",
            f"{predict.requests_per_s:.0f}",
            predict.requests_per_s >= MIN_REQUESTS_PER_S,
        ),
        judged("no errors", f"{errors} of {sum(load.requests for load in served.loads)}", errors == 0),
        judged("less than 5 MiB of growth", f"{growth / 2**20:.2f} MiB at most", growth < MAX_GROWTH_BYTES),
    )


def judge_row(budget: Budget, served: Served, machine: Machine) -> Verdict:
    """Return the verdict on a published row over HTTP, by the `/predict` of an artifact of the row's precision."""
    predict, single = served.loads[0], served.single_calls
    where = f"with {served.artifact} on {served.runtime}, over /predict, on {machine}"
    if budget.min_requests_per_s is not None:
        met = predict.requests_per_s >= budget.min_requests_per_s and predict.errors == 0
        text = f"{predict.requests_per_s:.4g} requests/s in {predict.seconds:.0f} s, {predict.errors} errors, {where}"
        limit = f"{budget.min_requests_per_s:g} requests/s asked for"
    else:
        assert budget.max_ms is not None, "a row over HTTP names requests a second or milliseconds"
        met = single.mean_ms <= budget.max_ms
        text = f"mean {single.mean_ms:.3g} ms of {single.samples} calls, one after another, {where}"
        limit = f"{budget.max_ms:g} ms allowed"
    few = not met and machine.usable_cores < CPU4_CORES
    return Verdict(
        status="met" if met else "inconclusive" if few else "missed",
        budget=budget,
        reason=f"{text}; {limit}" + (f", and {machine.usable_cores} of {CPU4_CORES} cores decide nothing" * few),
        artifact=served.artifact,
        runtime=served.runtime,
        threads=served.threads,
        value_ms=None if budget.max_ms is None else single.mean_ms,
        value_per_s=None if budget.min_requests_per_s is None else predict.requests_per_s,
    )


def run(bundle: Path, folder: Path, seconds: float, connections: int) -> Report:
    """Serve the selected artifact and the fastest in fp32, and judge both.

    Raises:
        TsexportError: the bundle cannot be served, or the load cannot be made.
    """
    find_wrk()
    use_at_most(CORES)
    machine, before = fingerprint(), os.getloadavg()[0]
    model = open_bundle(bundle).manifest.model.name
    cpu_rows = tuple(row for row in load_tables().cpu_load if row.model == model and row.via == "http")
    rates = rates_of(tuple(cpu_rows[0].percent_by_rps)) if cpu_rows else ()
    served = tuple(
        serve_and_measure(bundle, precision, folder, seconds, connections, rates) for precision in (None, "fp32")
    )
    rows = [budget for budget in latency_budgets(MODEL, FAMILY) if budget.via == "http"] if model == MODEL else []
    return Report(
        suite="serve_load",
        machine=machine,
        model=model,
        load_average=(before, os.getloadavg()[0]),
        served=served,
        goals=judge_goals(served[0], (model, seconds, connections) == (MODEL, 30.0, 10)),
        verdicts=tuple(judge_row(budget, one, machine) for budget in rows for one in served
                       if one.precision == budget.precision),
        cpu_load=cpu_rows,
    )  # fmt: skip


def use_at_most(cores: int) -> None:
    """Keep this process, and those it starts, on so many cores."""
    if hasattr(os, "sched_getaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def report_text(report: Report) -> str:
    """Return the tables as Markdown."""
    loads = [
        (
            f"{one.artifact} ({one.precision}, {'batched' if one.batched else 'one at a time'}), {load.call}",
            f"{load.requests_per_s:.0f}",
            str(load.errors),
            milliseconds(load.p50_ms),
            milliseconds(load.p90_ms),
            milliseconds(load.p99_ms),
            megabytes(load.memory_bytes),
            f"{load.growth_bytes / 2**20:+.2f}",
        )
        for one in report.served
        for load in one.loads
    ]
    single = [
        (one.artifact, milliseconds(one.single_calls.mean_ms), milliseconds(one.single_calls.p50_ms),
         milliseconds(one.single_calls.p90_ms), milliseconds(one.single_calls.p99_ms), str(one.single_calls.samples))
        for one in report.served
    ]  # fmt: skip
    published = [f"{low:g}-{high:g}" for row in report.cpu_load[:1] for low, high in row.percent_by_rps.values()]
    low = [
        (f"{one.artifact}, {paced.requests_per_s:g} requests/s", f"{paced.cpu_percent_of_a_core:.1f}",
         f"{paced.cpu_percent_of_a_core / CPU4_CORES:.1f}", stated)
        for one in report.served
        for paced, stated in zip(one.paced, published, strict=True)
    ]  # fmt: skip
    verdicts = [(row.budget, row.device, row.precision, row.value, row.status, row.reason)
                for row in verdict_rows(report.verdicts)]  # fmt: skip
    first = report.served[0].loads[0]
    columns = ("artifact and call", "requests/s", "errors", "p50 ms", "p90 ms", "p99 ms", "memory MB", "growth MiB")
    return "\n".join(
        [
            f"# {report.model} behind `tsexport serve`",
            "",
            f"{machine_text(report.machine)}; measured with wrk, {first.connections} connections, "
            f"{first.seconds:.0f} s each, server and wrk on the same {report.machine.usable_cores} cores, batch 1; "
            f"{load_text(report.load_average)}.",
            "",
            table(columns, loads),
            "",
            "## `/predict`, one call after another",
            "",
            table(("artifact", "mean ms", "p50 ms", "p90 ms", "p99 ms", "calls"), single),
            "",
            "## Goals, for the selected artifact",
            "",
            table(("goal", "measured", "status"), [(one.goal, one.measured, one.status) for one in report.goals]),
            "",
            "## Published rows over HTTP",
            "",
            table(("row", "device", "precision", "measured", "status", "why"), verdicts),
            "",
            "## Processor time at low rates, the server's process alone",
            "",
            table(("artifact and rate", "% of a core", "% of 4 cores", "published %"), low),
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; return the exit code: 0, or that of the error that ended it.  A missed goal is no error."""
    args = _parser().parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="tsexport-serve-") as folder:
            bundle = args.bundle or tsexport.build(MODEL, TARGET, output=Path(folder) / "dist").path
            report = run(Path(bundle), Path(folder), args.seconds, args.connections)
    except TsexportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    publish(report, report_text(report), args.output or results_path(report.suite, report.machine))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help=f"a bundle's folder; by default {MODEL} for {TARGET} is built")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each load; 30")
    parser.add_argument("--connections", type=int, default=10, help="that wrk keeps busy; 10")
    parser.add_argument("--output", type=Path, help="the .json to write; the .md goes beside it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
