"""tract (Rust) through its Python package, for ONNX files in fp32.

A symbolic batch can cost 2 to 4 times, so the batch is fixed by binding the file's own symbol.  An LSTM with an initial
state takes no binding but that to 1; such a file is loaded with fixed input shapes, which in turn clash with symbols
that the intermediate shapes of other files carry.  tract's default build runs on one thread: `threads` is accepted and
the session says 1.

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
        if batch is None:
            return self._compile_dynamic()
        try:
            return self._load(bound_to=batch)
        except tract.TractError as refusal:
            try:
                return self._load(fixed_at=batch)
            except tract.TractError:  # what is wrong with the file as it is says more
                raise refusal from None

    def _compile_dynamic(self) -> Infer:
        """Return a model for any batch; one that answers to a single batch only is loaded anew for each call."""
        infer = self._load()

        def run(feeds: Mapping[str, Array]) -> Sequence[Array]:
            try:
                return infer(feeds)
            except tract.TractError:
                batch = self._batch_of(feeds)
                if batch is None:
                    raise
                return self._load(fixed_at=batch)(feeds)

        return run

    def _load(self, *, bound_to: int | None = None, fixed_at: int | None = None) -> Infer:
        """Load the file as it is, with the batch's symbol bound to a number, or with input shapes fixed at one."""
        loaded = tract.onnx().load(self.artifact.path)
        inputs = [loaded.input_name(index) for index in range(loaded.input_count())]
        self.require_names("input", self.inputs, inputs)
        order = self._output_order([loaded.output_name(index) for index in range(loaded.output_count())])
        symbols = self._symbols({name: str(loaded.input_fact(index)) for index, name in enumerate(inputs)})
        if fixed_at is not None:
            for index in range(len(inputs)):
                dims = str(loaded.input_fact(index)).split(",")
                loaded.set_input_fact(index, ",".join(str(fixed_at) if dim in symbols else dim for dim in dims))
        model = loaded.into_model()
        if bound_to is not None and symbols:
            model.transform(tract.SetSymbols(dict.fromkeys(symbols, bound_to)))
        runnable = model.into_runnable()

        def infer(feeds: Mapping[str, Array]) -> Sequence[Array]:
            # A fresh state a run, as recurrent operators keep theirs; to_numpy copies.
            results = runnable.run([feeds[name] for name in inputs])
            return [results[index].to_numpy() for index in order]

        return infer

    def _batch_of(self, feeds: Mapping[str, Array]) -> int | None:
        """Return the batch of feeds that fit the inputs; None where no input has a symbolic one."""
        sizes = (
            int(size)
            for spec in self.inputs
            for dim, size in zip(spec.shape, feeds[spec.name].shape, strict=True)
            if isinstance(dim, str)
        )
        return next(sizes, None)

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
