"""Whole bundles in full size for Jetson, T4 and A100: every registered model, with its device kit.

Each row is `tsexport build MODEL --target TARGET --device DEVICE`, with the model's default configuration and its
reference data, in a process of its own.  Of the bundle it is kept what was selected and how far its simulated answers
are from the model's, what `tsexport check` says of the shipped graph, whether the device kit is complete, and which
rewrites the device's TensorRT needed.  Where there is no bundle, the exact error is.

How to run, from a checkout where tsexport is installed with its extra `build`:

    nice python bench/suites/device_bundles.py [--models linear,gru] [--targets jetson-int8,jetson-fp16-jetson-nano]
        [--minutes 60] [--folder /tmp/rows]

Results go to bench/results/device-bundles.json and .md after every row.  What is there already is not built again
without --anew, unless its process was ended before it could answer; what was not run is said to be not run.  Bundles
are deleted, each before the next; exports stay in tsexport's cache, where the rows of a model share them.  The models
come from small to large; the last takes 8 GiB of memory and 10 GB of disk.
The exit code is 1 where a bundle lacks something or a process was ended before it could answer.

What it does not say: how fast a device is, or whether its TensorRT agrees with `check`.  Nothing here runs on one.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tsexport.bench.fingerprint import Machine, fingerprint
from tsexport.bench.suites.device_bundle_records import (
    SCHEMA_VERSION,
    SUITE,
    TARGETS,
    Answer,
    Case,
    Options,
    Outcome,
    Report,
    Row,
    target_label,
)
from tsexport.bench.suites.device_bundle_row import ANSWER, COMMAND
from tsexport.bench.suites.device_bundle_text import report_text, row_line
from tsexport.bench.suites.report import RESULTS, write_results
from tsexport.cache import code_digest
from tsexport.codec import decode, decode_versioned, read_text
from tsexport.errors import ConfigurationError, TsexportError, UsageError, did_you_mean
from tsexport.models.registry import get_entry, list_entries

_LINES = 30
"""How much of what a process said before it ended is shown."""


@dataclass(frozen=True)
class Run:
    """What is asked for: the rows, whether those that are there are built again, and until when one may begin."""

    cases: tuple[Case, ...]
    anew: bool
    until_s: float
    folder: Path | None


def all_cases() -> tuple[Case, ...]:
    """Return every row that there is, small models first."""
    entries = sorted(list_entries(), key=lambda entry: entry.parameters)
    return tuple(Case(entry.name, target, device) for entry in entries for target, device in TARGETS)


def chosen_cases(models: str | None, targets: str | None) -> tuple[Case, ...]:
    """Return the rows of those models and targets, each a list with commas or None for all; models as they are listed.

    Raises:
        ConfigurationError: an unknown name.
    """
    labels = [target_label(*one) for one in TARGETS]
    wanted = labels if targets is None else targets.split(",")
    for label in wanted:
        if label not in labels:
            raise ConfigurationError(
                f"--targets has {label!r}{did_you_mean(label, labels)}; allowed are {', '.join(labels)}"
            )
    known = [case for case in all_cases() if target_label(case.target, case.device) in wanted]
    if models is None:
        return tuple(known)
    names = [get_entry(name).name for name in models.split(",")]
    return tuple(case for name in names for case in known if case.model == name)


def read_report(path: Path) -> Report:
    """Return what an earlier run wrote.

    Raises:
        BundleError: it cannot be read.
    """
    again = "name another --output, or delete the file to build all rows here"
    return decode_versioned(Report, read_text(path), version=SCHEMA_VERSION, what=path.name, next_step=again)


def rows_so_far(path: Path, machine: Machine) -> Report:
    """Return the report that a run goes on with, one without rows where there is no file.

    Raises:
        UsageError: its rows were built on another machine, or with other options.
        BundleError: it cannot be read.
    """
    fresh = Report(SUITE, machine, Options(), all_cases(), ())
    if not path.is_file():
        return fresh
    found = read_report(path)
    if (found.machine, found.options) != (fresh.machine, fresh.options):
        raise UsageError(
            f"the rows of {path} were built on another machine, with other packages or with other options",
            next_step="name another --output, or delete the file to build all of them here",
        )
    return replace(found, cases=fresh.cases)


def run(wanted: Run, report: Report, output: Path) -> Report:
    """Build what is missing, row by row, and write the results after each."""
    for number, case in enumerate(wanted.cases, 1):
        kept = report.row(case)
        if kept is None or wanted.anew or kept.outcome == "ended":
            if time.monotonic() >= wanted.until_s:
                break
            row = run_row(case, wanted.folder)
            report = report.with_row(row)
            write_results(report, report_text(report), output)
            print(f"[{number}/{len(wanted.cases)}] {row_line(row)}", file=sys.stderr, flush=True)
    return report


def run_row(case: Case, folder: Path | None, command: Sequence[str] = COMMAND) -> Row:
    """Run one row in a process of its own, which is given a folder under `folder`, the model, target and device.

    The peak is what the kernel counts for the process and its children, each alone; it begins with what this process
    held when it started the row's, some 0.1 GB.
    """
    place = Path(tempfile.mkdtemp(prefix=f"{SUITE}-", dir=folder))
    try:
        began = time.monotonic()
        with (place / "stderr").open("w+", encoding="utf-8", errors="replace") as errors:
            process = subprocess.Popen(
                [*command, str(place), case.model, case.target, case.device], stdout=subprocess.DEVNULL, stderr=errors
            )
            try:
                _, status, usage = os.wait4(process.pid, 0)
            except BaseException:
                process.kill()
                process.wait()
                raise
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.monotonic() - began
            errors.seek(0)
            said = errors.read().strip().splitlines()
        if process.returncode:
            print("\n".join(said[-_LINES:]), file=sys.stderr)
            answer, ending = Answer(), _ending(process.returncode, said)
        else:
            answer, ending = decode(Answer, read_text(place / ANSWER), what="a row's answer"), ""
    finally:
        shutil.rmtree(place)
    outcome: Outcome = "ended" if ending else "built" if answer.bundle else "refused"
    return Row(case, outcome, answer, ending, round(seconds, 1), usage.ru_maxrss * 1024, code_digest()[:12])


def _ending(code: int, said: Sequence[str]) -> str:
    last = f": {said[-1]}" if said else ""
    return f"ended by signal {-code}{last}" if code < 0 else f"ended with exit code {code}{last}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; return 0, 1 where a row has no answer or a bundle lacks something, or an error's code."""
    args = _parser().parse_args(arguments)
    try:
        cases = chosen_cases(args.models, args.targets)
        wanted = Run(cases, args.anew, time.monotonic() + 60 * args.minutes, args.folder)
        report = run(wanted, rows_so_far(args.output, fingerprint()), args.output)
    except TsexportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    text = report_text(report)
    write_results(report, text, args.output)
    print(text)
    rows = [row for row in report.rows if row.case in cases]
    return 1 if any(row.outcome == "ended" or row.lacks for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="names with commas, in the order of running; all, from small to large")
    parser.add_argument("--targets", help=f"with commas, of {', '.join(target_label(*one) for one in TARGETS)}; all")
    parser.add_argument("--minutes", type=float, default=600.0, help="no row begins after it; 600")
    parser.add_argument("--folder", type=Path, help="where bundles are built and deleted; the temporary folder")
    parser.add_argument("--anew", action="store_true", help="build rows that are there again")
    parser.add_argument("--output", type=Path, default=RESULTS / f"{SUITE}.json", help="the .md goes beside it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
