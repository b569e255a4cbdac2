"""Whole bundles in full size for Jetson, T4 and A100: every registered model, with its device kit.

Each row is `tsexport build MODEL --target TARGET --device DEVICE`, with the model's default configuration and its
reference data, in a process of its own.  Of the bundle it is written down what was selected and how far its simulated
answers are from the model's, what `tsexport check` says of the shipped graph, whether the device kit is complete, and
which rewrites the device's TensorRT needed.  Where there is no bundle, the exact error is.

How to run, from a checkout where tsexport is installed with its extra `build`:

    nice python bench/suites/device_bundles.py [--models linear,gru] [--targets jetson-int8,jetson-fp16@jetson-nano]
        [--minutes 60] [--folder /tmp/rows]

Results go to bench/results/device-bundles.json and .md after every row, and a row that is there is not run again
without --anew; what was not run is said to be not run.  Bundles are deleted, one after the other; exports stay in
tsexport's cache, where the rows of a model share them.  sfno-hybrid takes 8 GiB of memory and 10 GB of disk.
The exit code is 1 where a row that was run has no bundle with all of this.

What it does not say: what a device would take, in time or memory.  Nothing here has run on one.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tsexport.bench.fingerprint import fingerprint
from tsexport.bench.suites.device_bundle_records import (
    SCHEMA_VERSION,
    SUITE,
    TARGETS,
    Answer,
    Case,
    Options,
    Report,
    Row,
)
from tsexport.bench.suites.device_bundle_row import ANSWER
from tsexport.bench.suites.report import RESULTS
from tsexport.cache import code_digest
from tsexport.codec import decode, decode_versioned, encode, read_text, write_whole
from tsexport.models.registry import list_entries

WORKER = "tsexport.bench.suites.device_bundle_row"
LARGEST_LAST = "sfno-hybrid"
FIRST = ("hrm-27m", "migt-tvdt")


def all_cases() -> tuple[Case, ...]:
    entries = sorted(list_entries(), key=lambda entry: (entry.name not in FIRST, entry.parameters))
    return tuple(Case(entry.name, target, device) for entry in entries for target, device in TARGETS)


def run_row(case: Case, folder: Path) -> Row:
    """Run one row in a process of its own, and take its bundle away."""
    place = Path(tempfile.mkdtemp(prefix=f"{case.name}-", dir=folder))
    try:
        with (place / "stderr").open("w+") as errors:
            began = time.monotonic()
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", WORKER, str(place), case.model, case.target, case.device],
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.monotonic() - began
            errors.seek(0)
            said = errors.read().strip().splitlines()
        answer, ending = Answer(), ""
        if process.returncode == 0:
            answer = decode(Answer, read_text(place / ANSWER), what="the answer of a row")
        else:
            code = process.returncode
            ending = f"signal {-code}" if code < 0 else f"exit code {code}: {said[-1] if said else ''}"
            print("\n".join(said[-30:]), file=sys.stderr)
    finally:
        shutil.rmtree(place)
    outcome = "ended" if ending else "built" if answer.bundle else "refused"
    return Row(case, outcome, answer, ending, round(seconds, 1), usage.ru_maxrss * 1024, code_digest()[:12])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default="")
    parser.add_argument("--targets", default="")
    parser.add_argument("--minutes", type=float, default=600.0)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--output", type=Path, default=RESULTS / f"{SUITE}.json")
    parser.add_argument("--anew", action="store_true")
    args = parser.parse_args()
    cases = all_cases()
    report = Report(SUITE, fingerprint(), Options(), cases, ())
    if args.output.is_file():
        report = decode_versioned(Report, read_text(args.output), version=SCHEMA_VERSION, what="r", next_step="")
    models = args.models.split(",") if args.models else None
    until = time.monotonic() + 60 * args.minutes
    for case in cases:
        if models and case.model not in models:
            continue
        if report.row(case) is not None and not args.anew:
            continue
        if time.monotonic() > until:
            break
        row = run_row(case, args.folder)
        print(case.name, row.outcome, row.problems, row.seconds, row.peak_bytes >> 20, flush=True)
        report = replace(report, rows=(*(one for one in report.rows if one.case != case), row))
        write_whole(args.output, encode(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
