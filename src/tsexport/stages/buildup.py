"""Errors that build up, for every artifact on every runtime: K steps fed with its own output, and quantiles."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tsexport.errors import UsageError, reason_of
from tsexport.quantize.buildup_records import QuantileRecord, RolloutRecord
from tsexport.stages.context import Context, portable
from tsexport.stages.holding import keep_held
from tsexport.stages.preparing import ordered_quantiles
from tsexport.stages.samples import Samples, answers_of
from tsexport.stages.tried import Tried
from tsexport.types import Artifact, Session

if TYPE_CHECKING:
    from tsexport.stages.measuring import Placed

QUANTILE_BATCH = 32


@dataclass(frozen=True)
class BuildUp:
    """What was found for one artifact on one runtime, as far as it applies, and why it is out, "" where it is not.

    `failed` says why nothing could be found.
    """

    rollout: RolloutRecord | None = None
    quantiles: QuantileRecord | None = None
    miss: str = ""
    failed: str = ""


def require_feedback(context: Context, samples: Samples) -> None:
    """Raise where --rollout was given for a model that is not fed with its own output.

    Raises:
        UsageError: says why.
    """
    from tsexport.quantize.rollout import NoFeedback, feedback_of

    if context.options.rollout is None:
        return
    feedback = feedback_of(samples.spec)
    if isinstance(feedback, NoFeedback):
        raise UsageError(
            f"--rollout {context.options.rollout} feeds a model with its own output, and {context.built} cannot be: "
            f"{feedback.reason}",
            next_step="leave --rollout out",
        )


def check_buildup(context: Context, samples: Samples, artifact: Artifact, runtime: str) -> BuildUp:
    """Return what an artifact's errors build up to on a runtime; from the cache where it is known.

    Where the target is not this machine, what is not fp32 is simulated, as for its accuracy.
    """
    levels = ordered_quantiles(samples.spec)
    if context.options.rollout is None and not levels:
        return BuildUp()
    inputs = {
        "artifact": artifact.sha256,
        "options": artifact.options,
        "runtime": runtime,
        "samples": samples.key,
        "threads": context.threads,
        "rollout": context.options.rollout,
        "allowed": context.options.max_output_error,
        "simulated": context.simulates(artifact),
    }

    def produce(folder: Path) -> BuildUp:
        try:
            with context.session(artifact, runtime) as session:
                rollout = _rollout(context, samples, session) if context.options.rollout is not None else None
                quantiles = _quantiles(samples, session, levels) if levels else None
        except (OSError, MemoryError):
            raise  # of the machine at this moment, and no answer to keep
        except Exception as failure:
            # A runtime that dies on an artifact does so in its own words; the artifact is out with them.
            words = portable(reason_of(failure), context.cache)
            return BuildUp(failed=f"{runtime} cannot compute what its errors build up to: {words}")
        return BuildUp(rollout, quantiles)

    found = context.cache.stage("buildup", inputs, BuildUp, produce).result
    return _judged(found, artifact.name, runtime)


def hold_buildup(
    context: Context, samples: Samples, fp32: "tuple[Placed, ...]"
) -> "tuple[tuple[Placed, ...], tuple[str, ...]]":
    """Return the fp32 artifacts whose errors do not build up, and why the others are left out.

    Raises:
        AccuracyError: none is left.
    """
    misses = {one: check_buildup(context, samples, one.artifact, one.runtime).miss for one in fp32}
    return keep_held(
        misses,
        "no fp32 artifact stays with the source model",
        "ask for fewer steps with --rollout, or allow more with --max-output-error",
    )


def buildups_of(
    context: Context, samples: Samples, fp32: "tuple[Placed, ...]", tried: "tuple[Tried, ...]"
) -> tuple[BuildUp, ...]:
    """Return what was found for every artifact whose accuracy was judged."""
    pairs = [(one.artifact, one.runtime) for one in fp32]
    pairs += [(one.artifact, one.runtime) for one in tried if one.artifact is not None and one.accuracy is not None]
    return tuple(check_buildup(context, samples, artifact, runtime) for artifact, runtime in pairs)


def _judged(found: BuildUp, artifact: str, runtime: str) -> BuildUp:
    from tsexport.quantize.quantiles import Order, crossing_miss
    from tsexport.quantize.rollout import rollout_miss

    rollout = replace(found.rollout, artifact=artifact, runtime=runtime) if found.rollout else None
    quantiles = replace(found.quantiles, artifact=artifact, runtime=runtime) if found.quantiles else None
    misses = [rollout_miss(rollout.errors, rollout.allowed)] if rollout else []
    misses += [crossing_miss(Order(quantiles.crossed, quantiles.source_crossed, quantiles.new))] if quantiles else []
    misses += [found.failed]
    return BuildUp(rollout, quantiles, "; ".join(miss for miss in misses if miss), found.failed)


def _rollout(context: Context, samples: Samples, session: Session) -> RolloutRecord:
    from tsexport.quantize.rollout import ROLLOUT_WINDOWS, Feedback, feedback_of, rollout_errors

    feedback = feedback_of(samples.spec)
    assert isinstance(feedback, Feedback)  # `require_feedback` saw to it
    steps = context.options.rollout
    assert steps is not None
    windows = samples.feeds[feedback.input][:ROLLOUT_WINDOWS]
    errors = rollout_errors(session.run, context.source.run, feedback, windows, steps)
    finite = tuple(error if math.isfinite(error) else float(np.finfo(np.float32).max) for error in errors)
    allowed = context.options.max_output_error
    return RolloutRecord("", "", steps, len(windows), str(feedback), finite, allowed)


def _quantiles(samples: Samples, session: Session, levels: tuple[float, ...]) -> QuantileRecord:
    from tsexport.quantize.quantiles import CROSSING_SHARE, coverage, order_of_quantiles

    first = samples.spec.outputs[0].name
    answer = answers_of(session.run, samples.feeds, QUANTILE_BATCH)[first]
    source, target = samples.outputs[first], samples.target
    order = order_of_quantiles(answer, source)
    return QuantileRecord(
        "",
        "",
        levels,
        len(source),
        order.crossed,
        order.source_crossed,
        order.new,
        CROSSING_SHARE,
        coverage(answer, target) if target is not None else (),
        coverage(source, target) if target is not None else (),
    )
