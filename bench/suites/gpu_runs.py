"""Models on the GPU at hand with torch alone: eager, TorchScript and torch.compile, with and without CUDA graphs.

The cases stand in `gpu_cases.py`: hrm-27m whole and in parts in bf16, sfno-edge and sfno-hybrid in fp16, patchtst and
patchtst-cpu in fp32, fp16 and bf16.  Each answer is held against the source module in fp32 on the CPU before it is
timed.  Two latencies are given: between events on the stream, without copies, and of the whole call from arrays to
arrays, with both copies.  Calls wait for each other; no two overlap.

Results go to bench/results/gpu-NAME.json and .md, NAME being the GPU's (gpu-h100), and are written anew after every
row, so that what ends the run loses nothing.  They judge no budget of another device.

How to run, from a checkout where tsexport is installed, or by `bench/suites/gpu_check.sh` where it is not:

    python bench/suites/gpu_runs.py [--seconds 0.6] [--budget-seconds 230] [--only hrm-27m] [--output FOLDER]
    python bench/suites/gpu_runs.py --resume bench/results/gpu-h200.json      what is not measured there yet
    python bench/suites/gpu_runs.py --device cpu --output FOLDER              a rehearsal, no result

First every case without torch.compile; then several processes compile together, into torch's cache, and nothing is
timed meanwhile; then the compiled ways.  What the budget does not suffice for is in the result as "not run", and
`--resume` runs that, and what failed, on the same GPU with the same torch.  Each row says which run it is of.

What it does not say: how TensorRT would do, or a call that overlaps its copies with the call before.
"""

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tsexport.bench.suites.gpu_cases import CASES, COMPILED_WAYS, PLAIN_WAYS, Way
from tsexport.bench.suites.gpu_process import GpuProcess, prepare_together
from tsexport.bench.suites.gpu_records import GpuFacts, GpuReport, GpuRow
from tsexport.bench.suites.gpu_text import report_name, report_text
from tsexport.bench.suites.gpu_worker import Job
from tsexport.bench.suites.report import RESULTS, write_results
from tsexport.codec import decode, read_text
from tsexport.errors import DataError, TsexportError, UsageError
from tsexport.gpus import list_gpus
from tsexport.runtimes.cuda_build import NO_GPU, cuda_of_torch
from tsexport.targets import host_cpu

PLAIN_SHARE, PREPARED_SHARE = 0.4, 0.6
"""Of the budget: when the ways without torch.compile are ended, and when compiling together is."""
COMPILE_PROCESSES = 6
STUCK_SECONDS = 120.0
"""A way that takes longer than this is ended."""
_SETTLED = ("measured", "wrong")
GPU, CPU = "cuda", "cpu"


@dataclass
class Run:
    """A run under way: what is done so far, and where it is written."""

    device: str
    seconds: float
    deadline: float
    output: Path
    runs: tuple[GpuFacts, ...]
    rows: list[GpuRow] = field(default_factory=list)
    remarks: tuple[str, ...] = ()

    def add(self, row: GpuRow) -> None:
        """Keep a row in place of an older one, say it, and write all that there are."""
        self.rows = [one for one in self.rows if _key(one) != _key(row)]
        self.rows.append(replace(row, run=len(self.runs) - 1))
        timed = row.device or row.wall
        shown = f"p50 {timed.median_ms:.3f} ms" if timed else row.reason
        print(f"{row.case.name}, {row.way}: {row.status}, {shown}", file=sys.stderr, flush=True)
        self.write()

    def write(self) -> tuple[Path, Path]:
        """Write the record and its text, whole or not at all."""
        order = {case.name: number for number, case in enumerate(CASES)}
        rows = tuple(sorted(self.rows, key=lambda row: order.get(row.case.name, len(order))))
        report = GpuReport("gpu", self.device == CPU, self.runs, rows, self.remarks)
        return write_results(report, report_text(report), self.output / f"{report_name(report)}.json")

    def jobs(self, cases: Sequence[int], ways: tuple[Way, ...]) -> list[Job]:
        """Return one job for each case that has one of these ways to run."""
        settled = {_key(row) for row in self.rows if row.status in _SETTLED}
        left = {case: tuple(way for way in ways if (CASES[case].name, way) not in settled) for case in cases}
        return [Job(case, ways, self.device, self.seconds) for case, ways in left.items() if ways]

    def run_until(self, jobs: Sequence[Job], deadline: float) -> None:
        """Run jobs one after the other; one that the time does not suffice for is kept as not run."""
        with GpuProcess(STUCK_SECONDS) as process:
            for job in jobs:
                for row in process.run(job, min(deadline, self.deadline)):
                    self.add(row)


def _key(row: GpuRow) -> tuple[str, Way]:
    return row.case.name, row.way


def resumed(path: Path, facts: GpuFacts) -> GpuReport:
    """Return the results that a run here may go on with.

    Raises:
        DataError: the file is no results, or a rehearsal.
        UsageError: they were taken on another GPU or with another torch.
    """
    report = decode(GpuReport, read_text(path), what=path.name, error=DataError)
    if report.rehearsal:
        raise DataError(f"{path.name} is a rehearsal, which no run goes on with")
    theirs, ours = report.runs[-1].compared, facts.compared
    if theirs != ours:
        raise UsageError(
            f"{path.name} was taken on {_compared_text(theirs)}; here is {_compared_text(ours)}",
            next_step="leave --resume out, and give the results an --output of their own",
        )
    return report


def _compared_text(compared: tuple[str, str, str | None]) -> str:
    gpu, of_torch, cuda = compared
    return f"{gpu} with torch {of_torch}, CUDA {cuda or 'none'}"


def facts_here(device: str) -> GpuFacts:
    """Return what this machine is.  Versions are read from metadata."""
    gpus = list_gpus()
    return GpuFacts(
        gpu=gpus[0] if gpus and device == GPU else None,
        torch=version("torch"),
        cuda=cuda_of_torch(),
        triton=_version("triton"),
        python=platform.python_version(),
        cpu=host_cpu().model,
        day=f"{datetime.now(UTC):%Y-%m-%d}",
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def run(run_: Run, cases: Sequence[int], budget_seconds: float, compile_processes: int) -> None:
    """Run every way of the cases, in the three parts that the module describes."""
    began = time.monotonic()
    run_.run_until(run_.jobs(cases, PLAIN_WAYS), began + PLAIN_SHARE * budget_seconds)
    compiling = run_.jobs(cases, COMPILED_WAYS)
    if compile_processes > 0 and compiling:
        # A rehearsal has no graphs; both ways compile the same.
        together = [replace(job, ways=job.ways[-1:], only_prepare=True) for job in compiling]
        prepare_together(together, compile_processes, began + PREPARED_SHARE * budget_seconds)
    run_.run_until(compiling, run_.deadline)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=(GPU, CPU), default=GPU, help="cpu is a rehearsal, not a result")
    parser.add_argument("--seconds", type=float, default=0.6, help="for each of the two times of a way")
    parser.add_argument("--budget-seconds", type=float, default=230.0, help="for all of it")
    parser.add_argument("--resume", type=Path, help="results to go on with: run what is not measured there")
    parser.add_argument("--only", action="append", default=[], help="cases whose name holds this; may be repeated")
    parser.add_argument("--compile-processes", type=int, default=COMPILE_PROCESSES, help="0: compile in turn")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder of the results")
    parser.add_argument("--project", type=Path, help="project the rows of a results file, and run nothing")
    args = parser.parse_args(arguments)
    if args.project is not None:
        from tsexport.bench.suites.gpu_projection import project_results

        return project_results(args.project, args.output)
    if args.device == CPU and args.output == RESULTS:
        parser.error("a rehearsal is no result: give it an --output of its own")
    facts = facts_here(args.device)
    if args.device == GPU and facts.gpu is None:
        parser.error(f"{NO_GPU}; --device cpu rehearses")
    cases = [i for i, case in enumerate(CASES) if all(word in case.name for word in args.only)]
    if not cases:
        parser.error(f"no case is called {' and '.join(args.only)}; there are: {'; '.join(c.name for c in CASES)}")
    deadline = time.monotonic() + args.budget_seconds
    run_ = Run(args.device, args.seconds, deadline, args.output, (facts,))
    if args.resume is not None:
        try:
            before = resumed(args.resume, facts)
        except TsexportError as error:
            parser.error(f"{error.message}; {error.next_step}")
        run_ = replace(run_, runs=(*before.runs, facts), rows=list(before.rows), remarks=before.remarks)
    args.output.mkdir(parents=True, exist_ok=True)
    run(run_, cases, args.budget_seconds, args.compile_processes)
    print(f"written: {', '.join(str(path) for path in run_.write())}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
