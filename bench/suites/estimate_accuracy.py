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
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from tsexport.bench.fingerprint import fingerprint
from tsexport.bench.memory_model import RULES
from tsexport.bench.suites.estimate_cases import CASES, Case
from tsexport.bench.suites.estimate_measure import Measured, Measuring, Peak, artifacts_of, keep, read_measured, submit
from tsexport.bench.suites.estimate_report import write_report
from tsexport.errors import TsexportError
from tsexport.loading import cores_here
from tsexport.models.sources import identify, open_source

MB = 1_000_000


def measure(cases: list[Case], folder: Path, how: Measuring, jobs: int, measured: Measured) -> Measured:
    """Return the peaks with those of the cases that were not there, kept in the folder after each."""
    pool = ThreadPoolExecutor(jobs)
    there = {peak.key for peak in measured.peaks if peak.runs >= how.runs}
    pending: list[Future[Peak | str]] = []
    try:
        for case in cases:
            wanted = [(r, b) for b in case.batches for r in RULES if (case.label, r, b) not in there]
            if not wanted or time.monotonic() >= how.until_s:
                continue
            try:
                source = open_source(identify(case.model, settings=dict(case.settings)))
                artifacts = artifacts_of(case.label, source, folder)
            except TsexportError as error:
                measured = _with(measured, f"{case.label}: {error.message.splitlines()[0]}", folder)
                continue
            print(f"{case.label} is made", flush=True)
            pending += submit(case.label, artifacts, wanted, how, pool)
            while pending and pending[0].done():
                measured = _with(measured, pending.pop(0).result(), folder)
        for future in pending:
            measured = _with(measured, future.result(), folder)
    finally:
        pool.shutdown(cancel_futures=True)
    return measured


def _with(measured: Measured, found: Peak | str, folder: Path) -> Measured:
    print(found, flush=True)
    if isinstance(found, str):
        measured = replace(measured, failed=(*measured.failed, found))
    else:
        others = tuple(peak for peak in measured.peaks if peak.key != found.key)
        measured = replace(measured, peaks=(*others, found))
    keep(measured, folder)
    return measured


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
    write_report(measured, given.output)


if __name__ == "__main__":
    main()
