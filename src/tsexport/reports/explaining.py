"""Why an artifact is not faster, in words: what of it is integers, what is converted, and what bounds it.

A roofline gives the least time that the work can take on a machine, from what that machine sustained (see
`quantize.balance`):

    products    (fp32 MACs / fp32 MACs a second) + (int8 MACs / int8 MACs a second)
    memory      (bytes of constants + bytes that operators read and write) / bytes a second

The larger of the two is the bound.  An artifact that moves less than CACHED_BELOW is taken to stay in a cache, and gets
the rate of a copy there.  That operators cost nothing to start is assumed too, so a model of many small ones is slower
than its bound.  The bound is "projected", the latency beside it "measured".
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tsexport.bench.race import RaceResult
from tsexport.bench.records import Balance, MachineRecord
from tsexport.bench.rows import milliseconds
from tsexport.bundles.manifest import Manifest
from tsexport.work import Coverage

CACHED_BELOW = 4_000_000
"""Bytes: what a core's own caches and its share of the last one hold on most machines of the last ten years."""
OVERHEAD = 3.0
"""An artifact that takes this many times its bound is held up by neither products nor memory."""
_NANOSECOND_MS = 1e-6
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Explanation:
    """One artifact as a row of text; `bound` says what holds it up."""

    artifact: str
    runtime: str
    macs: str
    int8_share: str
    conversions: str
    moved: str
    intensity: str
    projected: str
    measured: str
    bound: str
    float_layers: str


def explanations(manifest: Manifest, record: MachineRecord | None) -> tuple[Explanation, ...]:
    """Return a row for the selected artifact, and one for each candidate within the budget whose graph was counted."""
    selected = manifest.selected
    balance = record.balance if record is not None else None
    races = record.races if record is not None else ()
    rows = []
    if manifest.coverage is not None and all(one.status != "selected" for one in manifest.candidates):
        median = _median_ms(races, selected.artifact, selected.runtime)
        rows.append(_explain(selected.artifact, selected.runtime, manifest.coverage, balance, median, ()))
    for one in sorted(manifest.candidates, key=lambda one: one.status != "selected"):
        if one.coverage is not None and one.artifact is not None:
            layers = tuple(one.recipe.get("float_layers", ()))
            median = _median_ms(races, one.artifact, one.runtime)
            rows.append(_explain(one.artifact, one.runtime, one.coverage, balance, median, layers))
    return tuple(rows)


def _median_ms(races: Sequence[RaceResult], artifact: str, runtime: str) -> float | None:
    """Return the median of the last race at batch 1 that it ran in; of several numbers of threads, the fastest."""
    found = [
        [entry.summary.median_ms for entry in race.entries if (entry.artifact, entry.runtime) == (artifact, runtime)]
        for race in races
        if race.batch == 1
    ]
    return next((min(medians) for medians in reversed(found) if medians), None)


def _explain(
    artifact: str,
    runtime: str,
    coverage: Coverage,
    balance: Balance | None,
    median_ms: float | None,
    float_layers: tuple[str, ...],
) -> Explanation:
    moved = coverage.weight_bytes + coverage.activation_bytes
    return Explanation(
        artifact=artifact,
        runtime=runtime,
        macs=_count(coverage.macs),
        int8_share=coverage.int8_text,
        conversions=f"{coverage.conversions} of {coverage.operators}",
        moved=f"{_count(moved)}B",
        intensity=f"{coverage.macs_per_byte:.3g}",
        projected=NOT_MEASURED if balance is None else milliseconds(max(least_ms(coverage, balance))),
        measured=NOT_MEASURED if median_ms is None else milliseconds(median_ms),
        bound=_bound(coverage, balance, median_ms),
        float_layers=", ".join(float_layers),
    )


def _bound(coverage: Coverage, balance: Balance | None, median_ms: float | None) -> str:
    """Return what holds an artifact up, and why its share of integers is not known where it is not."""
    bound = NOT_MEASURED if balance is None else bound_of(coverage, balance, median_ms)
    return f"{bound}; share in int8 not known: {coverage.unknown}" if coverage.unknown_macs else bound


def least_ms(coverage: Coverage, balance: Balance) -> tuple[float, float]:
    """Return the least milliseconds that the products take, and those that the memory takes.

    Products that may be of integers are taken for such: it is a bound from below.
    """
    integer = coverage.int8_macs + coverage.unknown_macs
    in_fp32 = (coverage.macs - integer) / balance.fp32_gmacs_per_s
    in_int8 = integer / balance.int8_gmacs_per_s
    moved = coverage.weight_bytes + coverage.activation_bytes
    return (in_fp32 + in_int8) / 1e6, moved / _copy_gb_per_s(coverage, balance) / 1e6


def _copy_gb_per_s(coverage: Coverage, balance: Balance) -> float:
    cached = coverage.weight_bytes + coverage.activation_bytes < CACHED_BELOW
    return balance.cached_copy_gb_per_s if cached else balance.copy_gb_per_s


def bound_of(coverage: Coverage, balance: Balance, median_ms: float | None) -> str:
    """Return what holds an artifact up: products, memory, or the operators themselves."""
    products, memory = least_ms(coverage, balance)
    least = max(products, memory, _NANOSECOND_MS)  # a graph may do nothing at all
    if median_ms is not None and median_ms > OVERHEAD * least:
        return (
            f"neither products nor memory: {median_ms / least:.0f} times its bound, which leaves its "
            f"{coverage.operators} operators, {coverage.conversions} of them conversions"
        )
    # fp32 and int8 products at the rates at which they came
    rate = coverage.macs / products / 1e6 if products else balance.fp32_gmacs_per_s
    needed = rate / _copy_gb_per_s(coverage, balance)
    figures = f"{coverage.macs_per_byte:.3g} MACs a byte, this machine sustains {needed:.3g} for each it moves"
    return f"{'products' if products >= memory else 'memory'}: {figures}"


def _count(value: float) -> str:
    """Return a number with three digits and a decimal prefix: "1.23 M"."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.0f} "
