"""tract (Rust) through its Python package, for ONNX files in fp32.

A symbolic batch can cost 2 to 4 times, so the batch is fixed by binding the file's own symbol; setting input shapes
would clash with symbols that the file's intermediate shapes carry. tract's default build runs on one thread:
`threads` is accepted and the session says 1.

Limits: quantized files load without gain, and Q/DQ around Softmax is silently wrong.  Values that an operator cannot
take (an index out of range) abort the whole process, as tract's bindings do not pass Rust's panics on; builds therefore
try every artifact in another process first (`runtimes.rehearsal`).
"""

import re
from collections.abc import Mapping, Sequence

import tract

from tsexport.runtimes.sessions import BatchSpecialised, Infer
from tsexport.types import Array, Artifact

_CAUSE = re.compile(r"^\s+(?:\d+: )?(.+)$")


class TractSession(BatchSpecialised):
    """An ONNX file in tract."""

    runtime = "tract"
    failures = (tract.TractError,)

    def __init__(self, artifact: Artifact, threads: int) -> None:
        super().__init__(artifact, threads=1)

    def _compile(self, batch: int | None) -> Infer:
        loaded = tract.onnx().load(self.artifact.path)
        inputs = [loaded.input_name(index) for index in range(loaded.input_count())]
        self.require_names("input", self.inputs, inputs)
        # tract calls an output after the node that makes it, so outputs are told apart by their place in the file.
        self.require_count("output", self.outputs, loaded.output_count())
        symbols = self._symbols({name: str(loaded.input_fact(index)) for index, name in enumerate(inputs)})
        model = loaded.into_model()
        if batch is not None and symbols:
            model.transform(tract.SetSymbols(dict.fromkeys(symbols, batch)))
        runnable = model.into_runnable()

        def infer(feeds: Mapping[str, Array]) -> Sequence[Array]:
            # A fresh state a run, as recurrent operators keep theirs; to_numpy copies.
            results = runnable.run([feeds[name] for name in inputs])
            return [result.to_numpy() for result in results]

        return infer

    def _symbols(self, facts: Mapping[str, str]) -> tuple[str, ...]:
        """Return the file's names of the batch, from facts like "batch,60,26,f32"."""
        found: dict[str, None] = {}
        for spec in self.inputs:
            dims = facts[spec.name].split(",")
            for dim, written in zip(spec.shape, dims, strict=False):
                if isinstance(dim, str) and not written.isdigit():
                    found[written] = None
        return tuple(found)

    def reason(self, error: Exception) -> str:
        """Return tract's first line and the innermost of its causes."""
        first, _, rest = str(error).partition("\n\nCaused by:\n")
        causes = [match[1] for line in rest.partition("\n\n")[0].splitlines() if (match := _CAUSE.match(line))]
        return ": ".join([first.splitlines()[0], *causes[-1:]])
