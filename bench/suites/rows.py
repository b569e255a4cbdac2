"""What the suite records: one row for each contestant, one result for each model."""

from dataclasses import dataclass

from tsexport.bench.statistics import Ratio, Summary
from tsexport.bench.suites.ratios import PairRatio

EAGER = "eager"
PLAIN_TORCHSCRIPT = "plain TorchScript"
PLAIN_ONNX = "plain ONNX Runtime"
QUANTIZE_DYNAMIC = "quantize_dynamic"
PLAIN_OPENVINO = "plain OpenVINO"
PLAIN_OPENVINO_F32 = "plain OpenVINO, f32 stated"
SELECTED = "tsexport selected"
FASTEST_FP32 = "tsexport fastest fp32"


@dataclass(frozen=True)
class Row:
    """One contestant.  Where `failed` says why it could not be run, nothing was measured.

    `output_error` is the relative RMS error against the source module, on real windows at batch 1; `degradation` is
    (task metric - source's) / source's, None without labels.  `process_medians_ms` has one value a fresh process.
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
    failed: str = ""


@dataclass(frozen=True)
class ModelResult:
    """All contestants of one model, measured in one interleaved run for each process.

    `selected` and `fp32` name the rows of the bundle's selected artifact and of its fastest fp32 one; they are the same
    row where fp32 is selected.  `load_average` is the system's over the last minute, before and after: above 1 plus
    what this run itself uses, something else was running.
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

    def row(self, name: str) -> Row:
        """Return the row of a contestant; KeyError where there is none."""
        return {row.name: row for row in self.rows}[name]

    def ratio(self, name: str, than: str) -> Ratio | None:
        """Return how many times faster one contestant is than another; None where one could not be run."""
        return next((pair.ratio for pair in self.ratios if (pair.name, pair.than) == (name, than)), None)
