"""What the suites record: one row for each contestant, one result for each model."""

from dataclasses import dataclass

from tsexport.bench.statistics import Ratio, Summary
from tsexport.bench.suites.ratios import PairRatio, RoundMedians
from tsexport.types import Verdict

EAGER = "eager"
PLAIN_TORCHSCRIPT = "plain TorchScript"
PLAIN_ONNX = "plain ONNX Runtime"
QUANTIZE_DYNAMIC = "quantize_dynamic"
QUANTIZE_STATIC = "quantize_static"
PLAIN_OPENVINO = "plain OpenVINO"
PLAIN_OPENVINO_F32 = "plain OpenVINO, f32 stated"
NNCF = "NNCF"
NNCF_TRANSFORMER = "NNCF, transformer type"
OLIVE = "Olive auto-opt"
SELECTED = "tsexport selected"
FASTEST_FP32 = "tsexport fastest fp32"
DEFAULTS = (
    PLAIN_ONNX, QUANTIZE_STATIC, QUANTIZE_DYNAMIC, PLAIN_OPENVINO, PLAIN_OPENVINO_F32, NNCF, NNCF_TRANSFORMER, OLIVE,
)  # fmt: skip
"""What a user gets from the other tools' defaults, in every precision."""
_PLAIN = (PLAIN_TORCHSCRIPT, PLAIN_ONNX, PLAIN_OPENVINO, PLAIN_OPENVINO_F32)


@dataclass(frozen=True)
class Row:
    """One contestant.  Where `failed` says why it could not be run, nothing was measured.

    `output_error` is the relative RMS error against the source module, on real windows at batch 1; `degradation` is
    (task metric - source's) / source's, None without labels.  `process_medians_ms` has one value a fresh process.
    `memory_bytes` is what a process's peak rose above its idle state while it loaded and answered once, `load_ms` how
    long that took.
    """

    name: str
    what: str
    precision: str
    is_export: bool = True
    size_bytes: int | None = None
    output_error: float | None = None
    degradation: float | None = None
    summary: Summary | None = None
    process_medians_ms: tuple[float, ...] = ()
    stable_warmup: bool = True
    than_eager: Ratio | None = None
    than_best_plain_fp32: Ratio | None = None
    than_plain_onnx: Ratio | None = None
    memory_bytes: int | None = None
    load_ms: float | None = None
    failed: str = ""


@dataclass(frozen=True)
class TriedCandidate:
    """A candidate of the bundle's own build: what became of it, and why.

    `speedup` is over the build's fastest fp32 artifact, None where it was not timed; `int8_share` the share of its
    multiply-accumulates in 8-bit integers and `conversions` the operators that only change how numbers are stored, None
    where they were not counted; errors as in `Row`.
    """

    name: str
    runtime: str
    precision: str
    status: str
    reason: str
    size_bytes: int | None
    output_error: float | None
    degradation: float | None
    speedup: Ratio | None
    int8_share: float | None = None
    conversions: int | None = None


@dataclass(frozen=True)
class ModelResult:
    """All contestants of one model, measured in one interleaved run for each process.

    `selected` and `fp32` name the rows of the bundle's selected artifact and of its fastest fp32 one; they are the same
    row where fp32 is selected.  `load_average` is the system's over the last minute, before and after: above 1 plus
    what this run itself uses, something else was running.  `why` says why that artifact was selected, `verdicts` are
    those of the bundle's own build, `tried` its candidates, and `rounds_ms` are the medians of every round, of which
    means over models are made.
    """

    model: str
    rows: tuple[Row, ...]
    ratios: tuple[PairRatio, ...]
    selected: str
    fp32: str
    windows: int
    rounds: int
    processes: int
    load_average: tuple[float, float]
    caveats: tuple[str, ...] = ()
    why: str = ""
    verdicts: tuple[Verdict, ...] = ()
    rounds_ms: tuple[RoundMedians, ...] = ()
    tried: tuple[TriedCandidate, ...] = ()
    family: str = ""

    def row(self, name: str) -> Row:
        """Return the row of a contestant; KeyError where there is none."""
        return {row.name: row for row in self.rows}[name]

    def ratio(self, name: str, than: str) -> Ratio | None:
        """Return how many times faster one contestant is than another; None where one could not be run."""
        return next((pair.ratio for pair in self.ratios if (pair.name, pair.than) == (name, than)), None)

    @property
    def plain_fp32(self) -> tuple[str, ...]:
        """The plain fp32 exports that could be run."""
        return tuple(
            one for one in _PLAIN if any(r.name == one and r.precision == "fp32" and r.summary for r in self.rows)
        )

    def rounds_of(self, name: str) -> RoundMedians:
        """Return the rounds of a contestant; KeyError where it was not timed."""
        return {one.name: one for one in self.rounds_ms}[name]
