"""Published rows of ensembles, judged by members that were measured in one run.

Voting runs its members and then counts.  Run at once it takes as long as the slowest, one after another the sum of all;
members were measured one at a time, so their sum is what is known to be enough, and their maximum what at least is
needed.  A row is met where the sum of the members' p90 is within it, missed where already the slowest is not, and
inconclusive between.  (The p90 of a sum is no sum of p90s; for latencies with a long tail it is below it.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tsexport.bench.figures import ENSEMBLE_PREFIX
from tsexport.bench.statistics import P90_SAMPLES, percentile, summarize
from tsexport.bench.tables import LatencyTables, budget_of
from tsexport.bench.verdicts import CPU4
from tsexport.types import Budget, Measurement, Verdict

MEMBERS: Mapping[str, tuple[str, ...]] = {
    "ensemble:boosting-voting": ("xgboost", "lightgbm", "catboost"),
    "ensemble:neural-voting": ("lstm", "gru", "tcn"),
}
"""Whose ensemble a row is, as its note says; the others are of any models."""
_HERE = frozenset({CPU4, "cpu", "any"})


@dataclass(frozen=True)
class Member:
    """A model with what was measured of it in this run."""

    model: str
    measurements: tuple[Measurement, ...]


def judge_ensembles(tables: LatencyTables, members: Sequence[Member]) -> tuple[Verdict, ...]:
    """Return one verdict for each latency row of an ensemble that these models make up; () for fewer than two models.

    A row that names its members is left out where not all of them are here.
    """
    by_model = {one.model: one for one in members}
    if len(by_model) < 2:
        return ()
    verdicts = []
    for row in tables.latency:
        if not row.model.startswith(ENSEMBLE_PREFIX):
            continue
        wanted = MEMBERS.get(row.model, tuple(by_model))
        if all(name in by_model for name in wanted):
            verdicts.append(_judge(budget_of(row), [by_model[name] for name in wanted]))
    return tuple(verdicts)


def _judge(budget: Budget, members: Sequence[Member]) -> Verdict:
    if budget.device not in _HERE:
        return Verdict("not measured", budget, _said(f"a budget of {budget.device}; measured on {CPU4}", budget))
    parts: list[tuple[str, float]] = []
    for member in members:
        p90_ms = _p90(member, budget)
        if p90_ms is None:
            what = f"{budget.precision or 'artifact'} measurement at batch {budget.batch} of {P90_SAMPLES} samples"
            return Verdict("not measured", budget, _said(f"{member.model} has no {what} here", budget))
        parts.append((member.model, p90_ms))
    slowest, total = max(ms for _, ms in parts), sum(ms for _, ms in parts)
    text = ", ".join(f"{name} {ms:.3g} ms" for name, ms in parts)
    text = f"p90 of the members: {text}; the slowest {slowest:.3g} ms, together {total:.3g} ms"
    artifact = " + ".join(name for name, _ in parts)
    if budget.max_ms is None:
        value = slowest if budget.formula.startswith("max") else total
        reason = _said(f"{text}; the row gives a formula ({budget.formula}) and no limit", budget)
        return Verdict("inconclusive", budget, reason, artifact, value_ms=value)
    reason = _said(f"{text}; {budget.max_ms:g} ms allowed", budget)
    if total <= budget.max_ms:
        return Verdict("met", budget, reason, artifact, value_ms=total)
    if slowest > budget.max_ms:
        return Verdict("missed", budget, reason, artifact, value_ms=slowest)
    return Verdict("inconclusive", budget, f"{reason}; it depends on how they are run", artifact, value_ms=total)


def _p90(member: Member, budget: Budget) -> float | None:
    same = [
        one
        for one in member.measurements
        if budget.precision in (None, one.precision) and one.batch == budget.batch
        if len(one.samples_ms) >= P90_SAMPLES
    ]
    fastest = min(same, key=lambda one: summarize(one.samples_ms).median_ms, default=None)
    return None if fastest is None else percentile(fastest.samples_ms, 0.90)


def _said(reason: str, budget: Budget) -> str:
    return f"{reason}. Caveat: {budget.caveat}" if budget.caveat else reason
