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
        order = self._output_order([loaded.output_name(index) for index in range(loaded.output_count())])
        symbols = self._symbols({name: str(loaded.input_fact(index)) for index, name in enumerate(inputs)})
        model = loaded.into_model()
        if batch is not None and symbols:
            model.transform(tract.SetSymbols(dict.fromkeys(symbols, batch)))
        runnable = model.into_runnable()

        def infer(feeds: Mapping[str, Array]) -> Sequence[Array]:
            # A fresh state a run, as recurrent operators keep theirs; to_numpy copies.
            results = runnable.run([feeds[name] for name in inputs])
            return [results[index].to_numpy() for index in order]

        return infer

    def _output_order(self, found: Sequence[str]) -> list[int]:
        """Return the place of each of the artifact's outputs in the file.

        tract calls an output after the node that makes it where that has a name, so names of tensors may be missing;
        the file's order is then the artifact's.
        """
        names = [spec.name for spec in self.outputs]
        if set(names) <= set(found):
            return [found.index(name) for name in names]
        self.require_count("output", self.outputs, len(found))
        return list(range(len(found)))

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
