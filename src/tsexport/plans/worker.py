"""One build of a plan in a process of its own: `python -m tsexport.plans.worker`.

It reads a `Job` on stdin, one line of JSON, and answers with a `Row` on stdout, one line again; progress and notes go
to stderr.  Libraries print to stdout, some from C: file descriptor 1 is pointed at stderr before anything else.

Its stdin stays open as long as somebody wants the build.  When it ends, because who started it stopped or died, the
build is interrupted as by Ctrl-C: measuring processes end, nothing half-written stays, and locks are given back.
"""

import json
import os
import platform
import signal
import sys
import threading
import time
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING

from tsexport.codec import decode, to_plain
from tsexport.errors import DataError, TsexportError
from tsexport.plans.records import Job, Row

if TYPE_CHECKING:
    from tsexport.bundles.bundle import Bundle
    from tsexport.stages.planned import Plan

EXIT_BUG, EXIT_INTERRUPTED = 1, 130
GOODBYE_SECONDS = 20.0
"""What an interrupted build may take to come out of the library that it is in, and to remove what it has begun."""


def carry_out(job: Job) -> Row:
    """Build what a job asks for, unless it is there already; what goes wrong becomes the row's reason."""
    began = time.monotonic()
    options = job.options
    row = Row(job.name, options.model, options.target, options.device, job.path, "failed")
    try:
        return replace(_built(job, row), seconds=_seconds_since(began))
    except TsexportError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return replace(
            row,
            exit_code=error.exit_code,
            reason=error.message,
            next_step=error.next_step,
            seconds=_seconds_since(began),
        )
    except Exception as error:
        traceback.print_exc()
        reason = f"a bug in tsexport: {type(error).__name__}: {error}"
        return replace(row, exit_code=EXIT_BUG, reason=reason, seconds=_seconds_since(began))


def _built(job: Job, row: Row) -> Row:
    from tsexport.bundles.bundle import open_bundle
    from tsexport.pipeline import plan_build
    from tsexport.plans.headlines import with_headline
    from tsexport.plans.state import inputs_digest, is_there, place_of, require_replaceable

    # What may be replaced is decided below; `force` lets the plan be made where a bundle stands.
    plan = plan_build(replace(job.options, force=True))
    place, inputs_sha256 = place_of(plan), inputs_digest(plan)
    with place.locked():
        if is_there(place, inputs_sha256):
            return with_headline(replace(row, status="there already"), open_bundle(place.bundle))
        require_replaceable(place)
        bundle = _build(plan, inputs_sha256)
        return with_headline(replace(row, status="built"), bundle)


def _build(plan: "Plan", inputs_sha256: str) -> "Bundle":
    """Build, with the state written before and after."""
    from tsexport.models.factory import imported_sources
    from tsexport.pipeline import run_build
    from tsexport.plans.state import begin, fail, finish, place_of

    began = time.monotonic()
    place = place_of(plan)
    state = begin(place, inputs_sha256)
    try:
        bundle = run_build(plan, say=lambda line: print(line, file=sys.stderr, flush=True))
    except Exception:
        fail(place, state, time.monotonic() - began)
        raise
    sources = {str(path): digest for path, digest in imported_sources().items()}
    finish(place, state, sources, time.monotonic() - began)
    return bundle


def _seconds_since(began: float) -> float:
    return round(time.monotonic() - began, 3)


def _end_with_stdin() -> None:
    """Interrupt this process when its stdin ends, and kill it with all that it started where that does not help."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(GOODBYE_SECONDS)
        os.killpg(0, signal.SIGKILL)  # its session is its own, see tsexport.plans.process

    threading.Thread(target=wait, daemon=True).start()


def main() -> int:
    """Read the job, build, answer; return the exit code."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # who started it may have ignored it
    try:
        job = decode(Job, sys.stdin.buffer.readline(), what="the job", error=DataError)
        _end_with_stdin()
        whose = f"of process {os.getppid()} on {platform.node()}"
        print(f"--- process {os.getpid()} {whose} builds {job.name}", file=sys.stderr, flush=True)
        row = carry_out(job)
    except KeyboardInterrupt:
        print("--- interrupted", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    print(f"--- {row.status} in {row.seconds:.1f} s", file=sys.stderr, flush=True)
    with answers:
        answers.write(json.dumps(to_plain(row)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
