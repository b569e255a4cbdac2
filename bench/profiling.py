"""Profile one artifact on one runtime, in a fresh process: `python -m tsexport.bench.profiling`.

The process reads one request on stdin and answers on stdout, one JSON object each; what libraries print goes to stderr.
A profile explains and decides nothing, so whatever goes wrong with it becomes the record's `reason`: a runtime that has
no profiler, a process that dies or hangs.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from tsexport.bench.fingerprint import Machine
from tsexport.bench.process import write_feeds
from tsexport.bench.profile_records import ProfileRecord, by_operator, longest
from tsexport.bench.profilers import PROFILERS, Profiled
from tsexport.codec import encode, from_plain, parse_json
from tsexport.errors import DataError, reason_of
from tsexport.types import Artifact, Feeds

TIMEOUT_SECONDS = 120.0
PROFILE_COMMAND = (sys.executable, "-P", "-m", "tsexport.bench.profiling")
"""-P: the working folder is no place to import from."""
_REASON_CHARACTERS = 200


@dataclass(frozen=True)
class ProfileRequest:
    """What to profile; `feeds` is an .npz of arrays [batch, ...] under the artifact's input names."""

    artifact: Artifact
    runtime: str
    threads: int
    feeds: str


@dataclass(frozen=True)
class ProfileAnswer:
    """What the process found: `reason` stands where there is no profile."""

    profiled: Profiled | None
    reason: str


def profile(
    artifact: Artifact, runtime: str, *, feeds: Feeds, threads: int, machine: Machine, batch: int = 1
) -> ProfileRecord:
    """Return where the time of a call goes, or why that is not known; it takes about two seconds.

    Args:
        artifact, runtime, threads: as `measure` takes them.
        feeds: arrays [samples, ...] named as the inputs, repeated where a batch needs more.
        machine: this one; the record holds it.
        batch: samples a call.
    """
    record = ProfileRecord(machine, artifact.name, runtime, artifact.precision, batch, threads)
    if runtime not in PROFILERS:
        return _without(record, f"{runtime} does not tell what its nodes take")
    with tempfile.TemporaryDirectory(prefix="tsexport-profile-") as folder:
        rows = {name: array[[i % len(array) for i in range(batch)]] for name, array in feeds.items()}
        path = write_feeds(rows, Path(folder))
        answer = _ask(ProfileRequest(artifact, runtime, threads, str(path)))
    if answer.profiled is None:
        return _without(record, answer.reason)
    return record_of(record, answer.profiled)


def record_of(record: ProfileRecord, profiled: Profiled) -> ProfileRecord:
    """Return the record with what a profiler said; without a profile where no node took a tick of its clock."""
    operators = by_operator(profiled.nodes)
    if not sum(one.mean_ms for one in operators) > 0:
        return _without(record, f"no node took as long as the clock can tell: {profiled.method}")
    nodes, rest, rest_ms = longest(profiled.nodes) if profiled.names_nodes else ((), 0, 0.0)
    return replace(
        record,
        method=profiled.method,
        calls=profiled.calls,
        profiled_ms=profiled.profiled_ms,
        plain_ms=profiled.plain_ms,
        operators=operators,
        nodes=nodes,
        rest_nodes=rest,
        rest_ms=rest_ms,
    )


def _without(record: ProfileRecord, reason: str) -> ProfileRecord:
    return replace(record, reason=reason[:_REASON_CHARACTERS])


def _ask(request: ProfileRequest) -> ProfileAnswer:
    try:
        done = subprocess.run(
            PROFILE_COMMAND, input=encode(request), capture_output=True, text=True, timeout=TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return ProfileAnswer(None, f"the profiling process gave no answer in {TIMEOUT_SECONDS:g} s")
    if done.returncode != 0:
        return ProfileAnswer(None, f"the profiling process ended with exit code {done.returncode}")
    try:
        return from_plain(ProfileAnswer, parse_json(done.stdout, what="profile"), what="profile", error=DataError)
    except Exception as error:
        return ProfileAnswer(None, f"the profiling process answered garbage: {error}")


def answer(request: ProfileRequest) -> ProfileAnswer:
    """Return what a profiler says of an artifact here, in this process."""
    import numpy as np

    try:
        with np.load(request.feeds, allow_pickle=False) as archive:
            feeds = {name: archive[name] for name in archive.files}
        with tempfile.TemporaryDirectory(prefix="tsexport-profile-") as folder:
            profiled = PROFILERS[request.runtime](request.artifact, request.threads, feeds, Path(folder))
    except Exception as error:
        # Whatever a runtime raises: it is the reason why there is no profile, and no build ends for it.
        return ProfileAnswer(
            None, f"{request.runtime} could not be profiled: {type(error).__name__}: {reason_of(error)}"
        )
    return ProfileAnswer(profiled, "")


def main() -> None:
    """Keep stdout for the answer, and answer one request."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = from_plain(ProfileRequest, parse_json(sys.stdin.read(), what="request"), what="request", error=DataError)
    with contextlib.closing(answers):
        answers.write(encode(answer(request)))


if __name__ == "__main__":
    main()
