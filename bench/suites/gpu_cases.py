"""What `gpu_runs.py` measures: models and parts of them, in which precision and batch, and in which ways.

In order of importance: what the time does not suffice for comes last.  Random feeds: a time does not depend on values.
"""

from dataclasses import dataclass
from typing import Literal

from tsexport.types import Precision

Way = Literal["eager", "TorchScript", "TorchScript, CUDA graph", "compiled", "compiled, CUDA graph"]
GRAPH_SUFFIX = "CUDA graph"
"""How the ways end whose kernels are started together; in the others the host starts one after the other."""
PLAIN_WAYS: tuple[Way, ...] = ("TorchScript, CUDA graph", "TorchScript", "eager")
COMPILED_WAYS: tuple[Way, ...] = ("compiled, CUDA graph", "compiled")
WAYS: tuple[Way, ...] = ("eager", "TorchScript", "TorchScript, CUDA graph", "compiled", "compiled, CUDA graph")
Form = Literal["source", "matrix products"]
"""How spectral layers are computed: by `torch.fft`, as the model is defined, or as an export writes them."""

DAYS, WINDOWS = 128, 256
"""The batches of the latency plan: 128 days, and 256 windows of minutes."""
WINDOW_MINUTES = 60


@dataclass(frozen=True)
class Case:
    """One model, or a part of it, in one precision at one batch size.

    `settings` are the model's.  What of it stays in fp32 is the model's to say (`models.definition.Narrowing`).
    """

    model: str
    precision: Precision
    batch: int
    component: str | None = None
    settings: tuple[tuple[str, int], ...] = ()
    form: Form = "source"

    @property
    def name(self) -> str:
        """Such as "hrm-27m l-module l_window=60, bf16, batch 256"."""
        words = [self.model, self.component or "", *(f"{key}={value}" for key, value in self.settings)]
        form = "" if self.form == "source" else f", {self.form}"
        return f"{' '.join(word for word in words if word)}{form}, {self.precision}, batch {self.batch}"

    @property
    def graph(self) -> str:
        """The name of the ONNX graph that counts this case's work, the same for every precision and batch."""
        words = [self.model, self.component or "total", *(f"{key}{value}" for key, value in self.settings)]
        return "-".join(words)


def _hrm(component: str | None, batch: int, precision: Precision = "bf16", *settings: tuple[str, int]) -> Case:
    return Case("hrm-27m", precision, batch, component, settings)


def _patchtst(model: str, precision: Precision, batch: int = 1) -> Case:
    return Case(model, precision, batch)


def _sfno(model: str, form: Form) -> Case:
    return Case(model, "fp16", 1, form=form)


CASES: tuple[Case, ...] = (
    _hrm(None, 1),
    _hrm("l-module", 1),
    _hrm("h-module", 1),
    _hrm("conditioning-heads", 1),
    _hrm(None, DAYS),
    _sfno("sfno-edge", "matrix products"),
    _patchtst("patchtst-cpu", "bf16"),
    _patchtst("patchtst", "bf16"),
    _hrm("l-module", WINDOWS),
    _hrm("l-module", WINDOWS, "bf16", ("minutes", WINDOW_MINUTES)),
    _sfno("sfno-hybrid", "matrix products"),
    _sfno("sfno-edge", "source"),
    _patchtst("patchtst-cpu", "fp16"),
    _patchtst("patchtst-cpu", "fp32"),
    _patchtst("patchtst", "fp16"),
    _patchtst("patchtst", "fp32"),
    _hrm("h-module", DAYS),
    _hrm("conditioning-heads", DAYS),
    _hrm(None, 1, "fp32"),
    _sfno("sfno-hybrid", "source"),
)
