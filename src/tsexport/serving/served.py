"""A bundle that is served: verified, loaded, warmed up, with a queue before it.

Every file's digest is checked before anything is opened.  With `check`, the session that will serve also answers the
golden inputs first, and is held against the golden outputs.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np

from tsexport.bundles.bundle import Bundle, open_bundle
from tsexport.bundles.golden import INPUTS, OUTPUTS, read_golden
from tsexport.bundles.loading import choose_artifact, cores_here, load_session
from tsexport.bundles.manifest import ArtifactEntry
from tsexport.bundles.structure import check_structure
from tsexport.bundles.verification import compare_with_golden
from tsexport.errors import GoldenError, UsageError
from tsexport.runtimes.sessions import SPECIALISED_BATCHES
from tsexport.serving.batcher import Batcher, can_batch
from tsexport.serving.limits import Limits
from tsexport.serving.metrics import Metrics
from tsexport.types import Array, Feeds, Session, TensorSpec

VERSION = "1"
"""The version of every model: a bundle has one."""


@dataclass(frozen=True)
class Choice:
    """Which artifact of each bundle is served, as `tsexport.load` takes it, and what is asked of the bundle first.

    With `check` it must answer its golden inputs here; `key` is a PEM file with the public key it must be signed by.
    """

    precision: str | None = None
    runtime: str | None = None
    threads: int | None = None
    check: bool = False
    key: Path | None = None


@dataclass(frozen=True)
class ModelDescription:
    """What is served under a name; `batched` where requests are computed together."""

    name: str
    artifact: str
    format: str
    precision: str
    runtime: str
    threads: int
    batched: bool
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class ServedModel:
    """A loaded model: what it is, and the queue to ask it through."""

    description: ModelDescription
    batcher: Batcher
    session: Session

    @property
    def name(self) -> str:
        return self.description.name

    def close(self, grace_s: float) -> bool:
        """Refuse what waits and free the model; return False where an inference still runs after `grace_s`."""
        ended = self.batcher.close(grace_s)
        if ended:
            self.session.close()
        return ended


def load_models(
    paths: Sequence[str | Path], choice: Choice, limits: Limits, metrics: Metrics
) -> dict[str, ServedModel]:
    """Load every bundle, by name, in the order given; none is served unless all can be.

    Raises:
        BundleError: a bundle is damaged, or not signed by the key.
        GoldenError: with `check`, what would be served misses its golden outputs.
        MissingDependencyError: the runtime is not installed, or cryptography where a key is given.
        UsageError: two bundles of one name, no such artifact, `threads` below 1, or a key that cannot be used.
    """
    with ExitStack() as opened:
        bundles = [opened.enter_context(open_bundle(path, choice.key)) for path in paths]
        _check_names(bundles)
        models: dict[str, ServedModel] = {}
        try:
            for bundle in bundles:
                models[bundle.name] = _load(bundle, choice, limits, metrics)
                bundle.keep_until_gone(models[bundle.name].session)
        except BaseException:
            for model in models.values():
                model.close(grace_s=1.0)
            raise
        return models


def _check_names(bundles: Sequence[Bundle]) -> None:
    names = [bundle.name for bundle in bundles]
    for bundle in bundles:
        if names.count(bundle.name) > 1:
            raise UsageError(
                f"two bundles are named {bundle.name!r}, and the name tells them apart",
                next_step="rename one of the folders",
            )


def _load(bundle: Bundle, choice: Choice, limits: Limits, metrics: Metrics) -> ServedModel:
    check_structure(bundle)
    session = load_session(bundle, choice.precision, choice.runtime, choice.threads)
    try:
        ranked = choose_artifact(bundle.manifest, bundle.selection, choice.precision, choice.runtime)
        entry = bundle.manifest.artifact(ranked.artifact)
        feeds = read_golden(bundle.path, INPUTS, entry.inputs, bundle.manifest.golden.samples)
        if choice.check:
            _check_golden(bundle, entry, session, feeds)
        together = can_batch(session.inputs, session.outputs, entry.batch_dependent)
        warm_up(session, feeds, bundle.selection.triton_batch_sizes, limits.max_batch)
    except BaseException:
        session.close()
        raise
    description = ModelDescription(
        name=bundle.name,
        artifact=entry.name,
        format=entry.format,
        precision=entry.precision,
        runtime=ranked.runtime,
        threads=choice.threads or min(bundle.selection.threads, cores_here()),
        batched=together,
        inputs=session.inputs,
        outputs=session.outputs,
    )
    batcher = Batcher(
        session,
        bundle.name,
        together=together,
        max_batch=limits.max_batch,
        max_queue=limits.max_queue,
        delay_s=limits.batch_delay_ms / 1000,
        observe=metrics.observer_of(bundle.name),
    )
    metrics.watch_queue(bundle.name, batcher)
    return ServedModel(description, batcher, session)


def warm_up(session: Session, feeds: Feeds, preferred: Sequence[int], max_batch: int) -> tuple[int, ...]:
    """Run one inference of each batch size that gets a compiled model of its own, and one more; return the sizes.

    So that no request waits for a compilation, and memory has been taken before the first one comes: a session compiles
    for the first sizes it meets (`BatchSpecialised`), and once for all others.  Those the bundle prefers come first.

    Args:
        feeds: arrays [samples, ...], repeated as often as a batch needs.
    """
    sizes = (size for size in dict.fromkeys((1, *preferred, *islice(count(1), 2 * SPECIALISED_BATCHES))))
    warmed = tuple(islice((size for size in sizes if size <= max_batch), SPECIALISED_BATCHES + 1))
    for size in warmed:
        session.run({name: array[np.arange(size) % len(array)] for name, array in feeds.items()})
    return warmed


def _check_golden(bundle: Bundle, entry: ArtifactEntry, session: Session, inputs: Feeds) -> None:
    golden = bundle.manifest.golden
    expected = read_golden(bundle.path, OUTPUTS, entry.outputs, golden.samples)
    parts: dict[str, list[Array]] = {}
    for start in range(0, golden.samples, golden.batch):
        answer = session.run({name: array[start : start + golden.batch] for name, array in inputs.items()})
        for name, array in answer.items():
            parts.setdefault(name, []).append(np.asarray(array))
    answers = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    missed = [one for one in compare_with_golden(expected, answers, entry.golden_tolerance) if not one.passed]
    if missed:
        raise GoldenError(
            f"{entry.name} of the bundle {bundle.name} misses its golden outputs here: "
            + "; ".join(f"output {one.output}: {one.reason}" for one in missed),
            next_step=f"do not serve it here; see `tsexport verify {bundle.source}`",
        )
