"""How far `tsexport estimate` is from the measured peak: reference models x batch sizes x runtimes.

    python bench/suites/estimate_accuracy.py --folder /tmp/models --output bench/results

Measured is the peak above an idle session of the same runtime (`bench.memory_worker`): the median of several fresh
processes, and the lowest and highest of them, since a peak depends on which holes the C library can fill.  Artifacts
and peaks are kept in --folder; what is there with as many runs is not measured again, and peaks that were measured
under other conditions are refused.  With --minutes 0 nothing is measured: the peaks that are there are estimated anew.

Estimated is what `tsexport estimate` says of the same model and batch, from its own sketch.  Its few constants were
fitted on these rows (`memory_fit.py`), so each row also bears `held out`: the estimate with the constants fitted on the
other models alone, all configurations of this one left out.  Memory needs no quiet machine.
"""

import argparse
import platform
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from tsexport.bench.fingerprint import fingerprint
from tsexport.bench.memory_model import RULES
from tsexport.bench.suites.estimate_cases import CASES, Case
from tsexport.bench.suites.estimate_measure import (
    Measured,
    Measuring,
    Peak,
    artifacts_of,
    keep,
    measure_row,
    read_measured,
)
from tsexport.bench.suites.estimate_report import write_report
from tsexport.bundles.loading import cores_here
from tsexport.errors import TsexportError
from tsexport.models.sources import identify, open_source

MB = 1_000_000


class _Kept:
    """The peaks so far, written to the folder whenever one is added, from whichever thread."""

    def __init__(self, measured: Measured, folder: Path) -> None:
        self.measured = measured
        self._folder = folder
        self._lock = threading.Lock()

    def add(self, found: Peak | str) -> None:
        """Add a peak in the place of the one before it, or the reason why there is none."""
        print(found, flush=True)
        with self._lock:
            if isinstance(found, str):
                self.measured = replace(self.measured, failed=(*self.measured.failed, found))
            else:
                others = tuple(peak for peak in self.measured.peaks if peak.key != found.key)
                self.measured = replace(self.measured, peaks=(*others, found))
            keep(self.measured, self._folder)

    def add_measured(self, measure_one: Callable[[], Peak | str]) -> None:
        """Measure, and add what it gives."""
        self.add(measure_one())


def measure(cases: list[Case], folder: Path, how: Measuring, jobs: int, measured: Measured) -> Measured:
    """Return the peaks with those of the cases that were not there; models are made while others are measured."""
    pool = ThreadPoolExecutor(jobs)
    there = {peak.key for peak in measured.peaks if peak.runs >= how.runs}
    any_runs = {peak.key for peak in measured.peaks}
    kept = _Kept(measured, folder)
    pending: list[Future[None]] = []
    try:
        for case in cases:
            wanted = [(r, b) for b in case.batches for r in RULES if (case.label, r, b) not in there]
            if time.monotonic() >= how.until_s:
                for runtime, batch in wanted:
                    if (case.label, runtime, batch) not in any_runs:
                        kept.add(f"{case.label} on {runtime}, batch {batch}: no time was left")
                continue
            if not wanted:
                continue
            try:
                source = open_source(identify(case.model, settings=dict(case.settings)))
                artifacts = artifacts_of(case.label, source, folder)
            except TsexportError as error:
                kept.add(f"{case.label}: {error.message.splitlines()[0]}")
                continue
            for runtime, batch in wanted:
                row = partial(measure_row, case.label, artifacts[runtime], runtime, batch, how)
                pending.append(pool.submit(kept.add_measured, row))
        for future in pending:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)
    return kept.measured


def main() -> None:
    """Measure what is missing, then estimate all of it and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="keeps artifacts and peaks")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "results")
    parser.add_argument("--model", action="append", help="only this one; may be given more than once")
    parser.add_argument(
        "--runs", type=int, default=2, help="fresh processes for each row; twice as many where they differ"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--minutes", type=float, default=600.0, help="start no process after so long")
    given = parser.parse_args()
    how = Measuring(min(2, cores_here()), given.runs, time.monotonic() + 60 * given.minutes)
    packages = tuple(f"{name} {version(name)}" for name in ("onnxruntime", "openvino", "torch"))
    now = Measured(fingerprint(), how.threads, " ".join(platform.libc_ver()), packages)
    before = read_measured(given.folder)
    if before is not None and not before.alike(now):
        parser.error(f"the peaks in {given.folder} were measured under other conditions; name another folder")
    cases = [case for case in CASES if not given.model or case.model in given.model]
    measured = measure(cases, given.folder, how, given.jobs, replace(before or now, failed=()))
    names = {case.model for case in CASES if any(peak.model == case.label for peak in measured.peaks)}
    if len(names) < 2:
        print(f"peaks are kept in {given.folder}; no report: constants are held out by model, and there is only one")
        return
    write_report(measured, given.output)


if __name__ == "__main__":
    main()
