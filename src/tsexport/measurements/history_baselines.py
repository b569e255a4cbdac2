"""Baselines and budgets from kept results.  Nothing else in tsexport writes either.

A baseline is one recording of a bundle on a machine, copied with its figures into `baseline.json` beside it.  Budgets
are rows of a latency table, the baseline's p90 with a margin, for `tsexport bench --table` and `tsexport build --table`
to judge by.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tsexport.bench.affinity import threads_text
from tsexport.bench.kept_records import (
    Baseline,
    BaselineEntry,
    KeptRecord,
    time_text,
    write_baseline,
)
from tsexport.bench.statistics import percentile, summarize
from tsexport.bench.tables import parse_tables
from tsexport.codec import write_whole
from tsexport.errors import UsageError
from tsexport.measurements.history_files import Recording, read_recordings

LATEST = "latest"
MARGIN = 0.10
_FEWEST_DIGITS = 4
_HASH = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True)
class SetBaseline:
    """A baseline that was written, and the one that it replaced (None where there was none)."""

    baseline: Baseline
    replaced: Baseline | None


@dataclass(frozen=True)
class SetBaselines:
    """What `--set-baseline` did; `unchanged` are the (bundle, machine) without a recording of that name."""

    done: tuple[SetBaseline, ...]
    unchanged: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class WrittenBudgets:
    """A latency table that was written: its path, rows, and what has no row because a p90 needs more samples."""

    path: str
    rows: int
    left_out: tuple[str, ...]


def set_baselines(folder: Path, which: str, *, bundle: str | None = None, machine: str | None = None) -> SetBaselines:
    """Make a recording the baseline of its bundle on its machine, for every bundle and machine that has one so named.

    Args:
        folder: what `tsexport bench --record` was given.
        which: "latest", a recording's file name, or its commit (of a hash, its first 4 digits or more); of several the
            newest is taken.
        bundle, machine: this bundle's, and those of the machine whose id begins so, alone.

    Raises:
        UsageError: no recording is so named, or as `read_recordings`.
    """
    found = read_recordings(folder, bundle=bundle, machine=machine)
    newest: dict[tuple[str, str], Recording] = {}
    for one in found.recordings:
        if _is_named(one, which):
            newest[one.place] = one
    if not newest:
        commits = dict.fromkeys(one.kept.commit for one in reversed(found.recordings) if one.kept.commit)
        raise UsageError(
            f"there is no recording {which!r}; allowed are {LATEST!r}, a file's name, and a commit: "
            f"{', '.join(list(commits)[:5]) or 'none is recorded'}"
        )
    now = time_text(datetime.now(UTC))
    done = []
    for place, one in newest.items():
        baseline = baseline_from(one.kept, one.file, now)
        write_baseline(baseline, folder)
        done.append(SetBaseline(baseline, found.baseline_of(place)))
    places = dict.fromkeys(one.place for one in found.recordings)
    return SetBaselines(tuple(done), tuple(place for place in places if place not in newest))


def _is_named(one: Recording, which: str) -> bool:
    commit = one.kept.commit or ""
    is_part = len(which) >= _FEWEST_DIGITS and _HASH.fullmatch(which) is not None and commit.startswith(which)
    return which in (LATEST, one.file, one.file.removesuffix(".json")) or (which != "" and which == commit) or is_part


def baseline_from(kept: KeptRecord, file: str, set_at: str) -> Baseline:
    """Return the baseline that a recording makes; `file` is its name."""
    return Baseline(
        bundle=kept.bundle,
        model=kept.model,
        component=kept.component,
        machine_id=kept.record.machine.machine_id,
        source=file,
        recorded_at=kept.recorded_at,
        commit=kept.commit,
        set_at=set_at,
        entries=tuple(
            BaselineEntry(
                artifact=one.artifact,
                runtime=one.runtime,
                precision=one.precision,
                batch=one.batch,
                threads=one.threads,
                median_ms=summarize(one.samples_ms).median_ms,
                p90_ms=percentile(one.samples_ms, 0.90),
                samples=len(one.samples_ms),
            )
            for one in kept.record.measurements
        ),
    )


def write_budgets(
    folder: Path,
    output: Path,
    *,
    margin: float = MARGIN,
    bundle: str | None = None,
    machine: str | None = None,
    force: bool = False,
) -> WrittenBudgets:
    """Write a latency table whose budgets are the baselines' p90 with a margin.

    For each model, precision and batch size it is the fastest artifact's, as `bench` judges it; `device` is "cpu".

    Args:
        output: the .toml file; one that is there is replaced with `force` alone.
        margin: 0.1 allows 10 % more than the baseline took.

    Raises:
        UsageError: no baseline, baselines of several machines or bundles of one model, no p90 in any, a margin that is
            not allowed, or a file that is there or cannot be written.
    """
    if not 0 <= margin < float("inf"):
        raise UsageError(f"margin is {margin:g}; allowed are fractions from 0 on, for example 0.1 for 10 %")
    if output.exists() and not force:
        raise UsageError(f"{output} is there already", next_step="name another file, or replace it with --force")
    found = read_recordings(folder, bundle=bundle, machine=machine)
    if not found.baselines:
        raise UsageError(
            f"{folder} has no baseline to make budgets from",
            next_step="set one with `tsexport history DIR --set-baseline latest`",
        )
    machines = sorted({one.machine_id for one in found.baselines})
    if len(machines) > 1:
        raise UsageError(
            f"there are baselines of the machines {', '.join(machines)}, and a budget is of one",
            next_step="choose one with --machine",
        )
    _check_models(found.baselines)
    rows, left_out = [], []
    for baseline in found.baselines:
        for entry in _fastest(baseline.entries):
            if entry.p90_ms is None:
                left_out.append(f"{baseline.bundle}: {entry.artifact} at batch {entry.batch}, {entry.samples} samples")
            else:
                rows.append(_row(baseline, entry, entry.p90_ms, margin))
    if not rows:
        raise UsageError(
            "no baseline holds a p90, which needs 64 samples: " + "; ".join(left_out),
            next_step="record with more --seconds, and set the baseline again",
        )
    text = "\n\n".join(
        (f"# Written by `tsexport history`: the p90 of baselines, plus {margin:.3g}.\nschema = 1", *rows)
    )
    parse_tables(text, output.name)  # what is written here is read by the same rules as what people write
    try:
        write_whole(output, text + "\n")
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}") from error
    return WrittenBudgets(str(output), len(rows), tuple(left_out))


def _check_models(baselines: Sequence[Baseline]) -> None:
    seen: dict[tuple[str, str | None], str] = {}
    for one in baselines:
        other = seen.setdefault((one.model, one.component), one.bundle)
        if other != one.bundle:
            raise UsageError(
                f"{other} and {one.bundle} are both of {one.model}, and a budget is of one model",
                next_step="choose one with --bundle",
            )


def _fastest(entries: Sequence[BaselineEntry]) -> tuple[BaselineEntry, ...]:
    best: dict[tuple[str, int], BaselineEntry] = {}
    for one in entries:
        known = best.get((one.precision, one.batch))
        if known is None or one.median_ms < known.median_ms:
            best[(one.precision, one.batch)] = one
    return tuple(best.values())


def _row(baseline: Baseline, entry: BaselineEntry, p90_ms: float, margin: float) -> str:
    source = f"{baseline.bundle}, {baseline.source}"
    where = f"{entry.runtime}, {threads_text(entry.threads)}, on {baseline.machine_id}"
    note = f"p90 {p90_ms:.4g} ms of {entry.artifact} on {where}"
    lines = [
        "[[latency]]",
        f"model = {_text(baseline.model)}",
        *([f"component = {_text(baseline.component)}"] if baseline.component else []),
        'device = "cpu"',
        f'precision = "{entry.precision}"',
        f"batch = {entry.batch}",
        f"max_ms = {float(f'{p90_ms * (1 + margin):.6g}')!r}",
        f"note = {_text(note)}",
        f"source = {_text(source)}",
    ]
    return "\n".join(lines)


def _text(value: str) -> str:
    """Return a TOML basic string: JSON's, which escapes all that TOML forbids but DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
