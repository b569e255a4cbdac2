"""Hold an artifact against its source model, and say where it departs."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tsexport.errors import ParityError
from tsexport.runtimes.comparison import compare_outputs
from tsexport.runtimes.registry import load
from tsexport.runtimes.rehearsal import rehearse
from tsexport.types import (
    Array,
    Artifact,
    Feeds,
    ModelSpec,
    Parity,
    SourceModel,
    TensorSpec,
    Tolerance,
    random_feeds,
)

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class FeedSet:
    """Feeds under the name that a `Parity` gives them: "random" or "real"."""

    name: str
    feeds: Feeds

    @property
    def batch(self) -> int:
        return int(next(iter(self.feeds.values())).shape[0])


class RememberedSource:
    """A source model that keeps what it answered, by the content of the feeds."""

    def __init__(self, source: SourceModel) -> None:
        self._source = source
        self._answers: dict[str, dict[str, Array]] = {}

    @property
    def spec(self) -> ModelSpec:
        return self._source.spec

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Return what the source answers; the arrays are shared with later calls, so they are read-only."""
        digest = hashlib.sha256()
        for name, array in feeds.items():
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).data)
        key = digest.hexdigest()
        if key not in self._answers:
            answers = self._source.run(feeds)
            for array in answers.values():
                array.flags.writeable = False
            self._answers[key] = answers
        return self._answers[key]


def feed_sets(
    inputs: tuple[TensorSpec, ...], real: Feeds | None = None, *, batches: Sequence[int] = (1, 2, 5), seed: int = 0
) -> tuple[FeedSet, ...]:
    """Return random feeds at every batch size and, where there are real samples, the first of those at every size.

    Args:
        real: arrays [samples, ...] by input name; sizes beyond the samples that there are repeat them.
        batches: for a model whose batch is fixed, only that size is used.
    """
    fixed = inputs[0].shape[0]
    sizes = (fixed,) if isinstance(fixed, int) else tuple(dict.fromkeys(batches))
    sets = [FeedSet("random", random_feeds(inputs, batch, seed + index)) for index, batch in enumerate(sizes)]
    if real is not None:
        for batch in sizes:
            sets.append(FeedSet("real", {name: np.resize(a, (batch, *a.shape[1:])) for name, a in real.items()}))
    return tuple(sets)


def check_parity(
    source: SourceModel,
    artifact: Artifact,
    runtime: str,
    sets: Sequence[FeedSet],
    tolerance: Tolerance,
    *,
    scaled: bool,
    threads: int = 1,
) -> tuple[Parity, ...]:
    """Run the artifact and its source on every set of feeds and compare; nothing is raised for a miss.

    Where the runtime could end this process, another one runs the artifact on the same feeds first.

    Args:
        scaled: take atol in units of each output's RMS; False for a tolerance that a user gave.
        threads: for the artifact's session.

    Raises:
        TsexportError: what `tsexport.runtimes.registry.load` and the session raise.
    """
    results = []
    rehearse(artifact, runtime, [chosen.feeds for chosen in sets])
    with load(artifact, runtime, threads=threads) as session:
        for chosen in sets:
            expected, actual = source.run(chosen.feeds), session.run(chosen.feeds)
            comparisons = compare_outputs(expected, actual, tolerance, scaled=scaled)
            results.append(Parity(artifact.name, runtime, chosen.name, chosen.batch, comparisons))
    return tuple(results)


def require_parity(
    source: SourceModel,
    artifact: Artifact,
    runtime: str,
    sets: Sequence[FeedSet],
    tolerance: Tolerance,
    *,
    scaled: bool,
    threads: int = 1,
    module: "nn.Module | None" = None,
) -> tuple[Parity, ...]:
    """Return what `check_parity` does if every comparison passed.

    Args:
        module: the torch module that was exported, for naming the first layer that departs; None where there is none.

    Raises:
        ParityError: names artifact, runtime, feeds, the worst output with its error and tolerance, and the first layer.
    """
    results = check_parity(source, artifact, runtime, sets, tolerance, scaled=scaled, threads=threads)
    missed = [(chosen, parity) for chosen, parity in zip(sets, results, strict=True) if not parity.passed]
    if not missed:
        return results
    chosen, parity = max(missed, key=lambda pair: pair[1].worst.excess)
    worst = parity.worst
    if module is None:
        where = "the first layer could not be localised: there is no torch module of this model"
    else:
        # imported here: it brings torch and every runtime along, and most builds miss nothing
        from tsexport.exporters.localise import localise

        where = localise(module, source.spec, artifact, runtime, chosen.feeds, tolerance).reason
    batches = sorted({p.batch for _, p in missed})
    right = sorted({p.batch for p in results} - set(batches))
    baked = f". Batches {right} are right: was the batch size baked in?" if right else ""
    raise ParityError(
        f"artifact {artifact.name} on {runtime} does not answer as {source.spec.name!r} on {chosen.name} feeds of "
        f"batch "
        f"{parity.batch} ({len(missed)} of {len(results)} sets of feeds missed): output {worst.output!r} has max error "
        f"{worst.max_abs_error:.3g}, relative RMS {worst.relative_rms:.3g}, {worst.excess:.3g} times what tolerance "
        f"{worst.tolerance.name!r} allows: {worst.reason}; {where}{baked}",
        next_step="If the difference is rounding, widen it with --atol and --rtol; otherwise leave the format out with "
        "--formats, or change the layer.",
    )
