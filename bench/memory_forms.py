"""What an estimate of memory is made of: a graph in the forms that runtimes compute, and how a session is used."""

from collections.abc import Sequence
from dataclasses import dataclass

from tsexport.bench.memory_plan import EagerEvent, MemoryGraph, Step, stated_scratch

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
MERGED_BATCH = 128
"""From this batch on oneDNN's recurrences compute the inputs' part of the gates step by step; measured, half of their
scratch is written to."""


@dataclass(frozen=True)
class ModelGraphs:
    """A graph in the forms that runtimes compute it in.

    blocked: with the channels of convolutions in blocks.  unscored: without the scores of attention.  fused: both.
    eager: what torch takes and gives back in one call; none where that could not be recorded.
    """

    plain: MemoryGraph
    blocked: MemoryGraph
    unscored: MemoryGraph
    fused: MemoryGraph
    eager: tuple[EagerEvent, ...] = ()

    @property
    def convolves(self) -> bool:
        return any(step.operator in CONVOLUTIONS for step in self.plain.steps)


@dataclass(frozen=True)
class Use:
    """A process: the batch of the calls, the batch sizes that each get a model of their own (none: one model serves
    all), and whether activations and scratch are taken at all."""

    batch: int
    models: tuple[int, ...]
    scale: float = 1.0
    activations: bool = True
    scratch: bool = True


def onednn_gates(graph: MemoryGraph, step: Step, batch: int) -> Sequence[Sequence[int]]:
    """Return the gates of a recurrence as oneDNN writes them: of all steps, or half of that in large batches."""
    if step.operator not in RECURRENT:
        return stated_scratch(graph, step, batch)
    return ((step.scratch.at(batch + 1) if batch < MERGED_BATCH else step.scratch.at(batch) // 2,),)


def no_scratch(graph: MemoryGraph, step: Step, batch: int) -> Sequence[Sequence[int]]:
    """Return no scratch at all."""
    return ()
