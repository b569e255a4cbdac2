"""What the exporters that trace a torch module share: its mode, its example inputs, and proofs on fresh ones.

A module takes its tensors positionally in the order of `spec.inputs`, and returns a tensor, or a tuple in the order of
`spec.outputs`.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.jit._trace import TracerWarning

from tsexport.errors import ExportError, FeedError, ParityError, reason_of
from tsexport.runtimes.comparison import TOLERANCES, compare_outputs
from tsexport.types import Array, Comparison, Feeds, Format, ModelSpec, Tolerance, random_feeds

# not "repeat", the same bits: torch may place a tensor otherwise in memory and sum it in another order
_REPEAT = TOLERANCES["fp32-same-math"]
_SEED = 20240229
_TORCH_FOLDER = str(Path(torch.__file__).parent)

Run = Callable[[Feeds], dict[str, Array]]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put the module into eval mode without gradients; afterwards every submodule has the mode it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def mha_fastpath(enabled: bool) -> Iterator[None]:
    """Switch the fast path of `nn.TransformerEncoder` on or off, and back to what it was, also on failure."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def example_tensors(spec: ModelSpec, feeds: Feeds) -> tuple[torch.Tensor, ...]:
    """Return the feeds as tensors in the order of `spec.inputs`, batch 2 or more.

    A batch of 1 broadcasts: a trace of it can hide that the batch matters.  Such feeds are repeated once.

    Raises:
        FeedError: an input is missing, or has another dtype or shape than the specification says.
    """
    names = [tensor.name for tensor in spec.inputs]
    if sorted(feeds) != sorted(names):
        raise FeedError(f"example feeds are named {sorted(feeds)}, the model's inputs are {names}")
    tensors = []
    for tensor in spec.inputs:
        array = feeds[tensor.name]
        if array.ndim == 0 or array.shape != tensor.with_batch(array.shape[0]) or array.dtype.name != tensor.dtype:
            raise FeedError(f"example feed {tensor.name!r} is {array.dtype.name}{list(array.shape)}, expected {tensor}")
        if array.shape[0] == 1 and isinstance(tensor.shape[0], str):
            array = np.concatenate([array, array])
        tensors.append(torch.from_numpy(np.array(array)))
    return tuple(tensors)


def run_module(module: Callable[..., object], spec: ModelSpec, feeds: Feeds) -> dict[str, Array]:
    """Run a module (or its trace) on feeds and return its outputs by name.

    Raises:
        ExportError: it returns something else than a tensor or a tuple of as many tensors as `spec.outputs` names.
    """
    answer = module(*(torch.from_numpy(np.array(feeds[tensor.name])) for tensor in spec.inputs))
    outputs = tuple(answer) if isinstance(answer, tuple | list) else (answer,)
    if len(outputs) != len(spec.outputs) or not all(isinstance(output, torch.Tensor) for output in outputs):
        given = ", ".join(type(output).__name__ for output in outputs)
        raise ExportError(
            f"the module of {spec.name!r} returns ({given}), expected a tensor or tuple for "
            f"{', '.join(map(str, spec.outputs))}",
            next_step="Wrap the module so that forward returns its output tensors in that order.",
        )
    return {
        tensor.name: output.detach().numpy()
        for tensor, output in zip(spec.outputs, outputs, strict=True)
        if isinstance(output, torch.Tensor)
    }


def require_repeatable(module: nn.Module, spec: ModelSpec, feeds: Feeds) -> None:
    """Run the module twice on the same feeds and compare.

    Raises:
        ExportError: the answers differ: it computes something random even in eval mode.
    """
    first, second = (run_module(module, spec, feeds) for _ in range(2))
    different = _differences(first, second, _REPEAT)
    if different:
        raise ExportError(
            f"the module of {spec.name!r} answers the same input differently each time, in eval mode: output "
            f"{different[0].output!r} by {different[0].max_abs_error:.3g}. An export would keep the randomness for "
            f"ever",
            next_step="Make it deterministic: F.dropout(x, p, training=self.training) instead of F.dropout(x, p).",
        )


@dataclass(frozen=True)
class ProofFeeds:
    """Fresh feeds for a proof; `batch` may differ from the one that was traced."""

    batch: int
    feeds: Feeds


def proof_feeds(module: nn.Module, spec: ModelSpec, feeds: Feeds, *, branches: bool) -> tuple[ProofFeeds, ...]:
    """Return fresh feeds at the traced batch size, one more, and 1, in this order.

    They are drawn at random; where the module has no finite answer to such (a logarithm, say), from the samples
    given. With `branches`, the first are followed by their negative, ten times, and zero: the tracer saw Python
    values taken from tensors, and a branch on one is likely to go both ways among these.
    """
    traced = int(example_tensors(spec, feeds)[0].shape[0])
    sizes = (traced, traced + 1, 1) if isinstance(spec.inputs[0].shape[0], str) else (traced,)
    chosen = []
    for index, batch in enumerate(sizes):
        fresh: Feeds = random_feeds(spec.inputs, batch, _SEED + index)
        if not _answers_finitely(module, spec, fresh):
            fresh = {name: np.resize(array[::-1], (batch, *array.shape[1:])) for name, array in feeds.items()}
        chosen.append(ProofFeeds(batch, fresh))
    if branches:
        varied = [
            {name: a * a.dtype.type(factor) if a.dtype.kind == "f" else a for name, a in chosen[0].feeds.items()}
            for factor in (-1, 10, 0)
        ]
        chosen[1:1] = [ProofFeeds(traced, fresh) for fresh in varied if _answers_finitely(module, spec, fresh)]
    return tuple(chosen)


def _answers_finitely(module: nn.Module, spec: ModelSpec, feeds: Feeds) -> bool:
    return all(np.isfinite(a).all() for a in run_module(module, spec, feeds).values() if a.dtype.kind == "f")


def first_departing_layer(module: nn.Module, spec: ModelSpec, name: Format, data: bytes, feeds: Feeds) -> str:
    """Return in words which layer of an exported program departs first; see `exporters.localise`."""
    # imported here: it brings every runtime along, and most exports miss nothing
    from tsexport.exporters.localise import departing_layer

    return departing_layer(module, spec, name, data, feeds)


def prove_equal(
    module: nn.Module,
    spec: ModelSpec,
    feeds: Feeds,
    run: Run,
    tolerance: Tolerance,
    *,
    what: str,
    calls: int,
    caveats: Sequence[str],
    locate: Callable[[Feeds], str],
) -> None:
    """Hold an exported program against the module on fresh inputs, other batch sizes, and repeated calls.

    Args:
        run: the exported program.
        what: names it in messages.
        calls: how often each input is run; each answer is compared (torch's profiling executor changes the program
            between the first and the third call), and the last two with each other.
        caveats: places where the trace kept a Python value, named in the message.
        locate: says which layer departs first on feeds that were missed.

    Raises:
        ExportError: it fails on other inputs, or answers the same input differently.
        ParityError: its answers are wrong.
    """
    hints = list(caveats)
    for proof in (sets := proof_feeds(module, spec, feeds, branches=bool(caveats))):
        if proof.batch != sets[0].batch:
            hints = [f"at batch {sets[0].batch}, which was traced, it is right: the batch size was baked in", *caveats]
        expected = run_module(module, spec, proof.feeds)
        answers: list[dict[str, Array]] = []
        for call in range(1, calls + 1):
            try:
                answers.append(run(proof.feeds))
            except Exception as error:  # runtimes raise types of their own; whatever it is, the program cannot be used
                raise ExportError(
                    f"{what} of {spec.name!r} fails at batch {proof.batch}: {reason_of(error)}{_because(hints)}",
                    next_step=_ADVICE,
                ) from error
            missed = _differences(expected, answers[-1], tolerance)
            if missed:
                worst = max(missed, key=lambda c: c.excess)
                raise ParityError(
                    f"{what} of {spec.name!r} differs from the module on fresh inputs at batch {proof.batch}, call "
                    f"{call}: {describe_miss(worst)}{_because([locate(proof.feeds), *hints])}",
                    next_step=_ADVICE,
                )
        if _differences(answers[-2], answers[-1], _REPEAT):
            raise ExportError(
                f"{what} of {spec.name!r} answers the same input differently each time",
                next_step="Remove what is random in the module: dropout outside eval mode, torch.rand and the like.",
            )


_ADVICE = (
    "Write forward without Python values taken from tensors: torch.where instead of if, x.shape[0] passed on as it is "
    "instead of int(...) or len(x), -1 in reshape."
)


def _because(hints: Sequence[str]) -> str:
    return "".join(f"; {hint}" for hint in hints)


def _differences(expected: dict[str, Array], actual: dict[str, Array], tolerance: Tolerance) -> list[Comparison]:
    return [c for c in compare_outputs(expected, actual, tolerance, scaled=True) if not c.passed]


def describe_miss(miss: Comparison) -> str:
    """Return a comparison that failed as text: output, error, and the tolerance by its name."""
    size = f"has max error {miss.max_abs_error:.3g}, {miss.excess:.3g} times" if np.isfinite(miss.excess) else "is not"
    reason = f" ({miss.reason})" if miss.reason else ""
    return f"output {miss.output!r} {size} what tolerance {miss.tolerance.name!r} allows{reason}"


def tracer_caveats(caught: Sequence[warnings.WarningMessage]) -> tuple[str, ...]:
    """Return one sentence for every place in the user's code where the tracer kept a Python value.

    Warnings from torch's own modules are left out: those branches choose between equal implementations.  Only the
    file's name is given, since provenance holds no paths.
    """
    places = {
        (Path(w.filename).name, w.lineno): None
        for w in caught
        if issubclass(w.category, TracerWarning) and not w.filename.startswith(_TORCH_FOLDER)
    }
    return tuple(
        f"{name}:{line} turns a tensor into a Python value, and the trace keeps the value it had for the example input"
        for name, line in places
    )
