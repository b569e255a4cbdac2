"""One spectral layer of sfno-hybrid, as tsexport exports it against the same layer with ONNX's DFT operator.

256 channels on 256x256 points, 32 modes, batch 1, one thread, everything in one process, interleaved round by round:

    products in ONNX Runtime / OpenVINO / TorchScript / tract     as exported (`exporters/rewrites/spectral.py`)
    DFT in ONNX Runtime / OpenVINO                                the same layer with opset 17's DFT operator
    DFT cut early in ONNX Runtime                                 the same, by somebody who knows that it is slow
    eager, traced                                                 `torch.fft` in torch, the definition of the layer

The DFT graph is the layer's definition, operation by operation: half a spectrum along longitude, all of it along
latitude, then the cut to what is kept, and back.  "Cut early" cuts the columns before the second transform, and so
does a quarter of its work; the definition does not.  The mixing is the same products in all.  Opset 17 has no inverse
for half a spectrum, so the last transform is of a whole one: columns kx > 0 are doubled, those of -kx left zero, and
its real part taken.

Goal: in ONNX Runtime at least 10 times faster than with DFT, as the layer is defined.  Ratios are medians over rounds
with the percentile bootstrap over rounds (`tsexport.bench.statistics`).

How to run, on a quiet machine, from a checkout where tsexport is installed with its extra `build`:

    python bench/suites/spectral_layer.py [--rounds 12] [--channels 256] [--points 256] [--modes 32]

Results go to bench/results/spectral_layer-<instruction set>.json and .md.
What it does not say: what the layer's share in a whole model is; other grids (other sizes than powers of two are slower
for a DFT).
"""

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tsexport.bench.affinity import threads_text
from tsexport.bench.fingerprint import Machine, fingerprint
from tsexport.bench.statistics import Ratio, ratio_of_medians
from tsexport.bench.suites.goals import Status, status_of
from tsexport.bench.suites.report import load_text, machine_text, publish, ratio_text, results_path, table
from tsexport.exporters.conversion import convert_to_onnx, convert_to_openvino, convert_to_torchscript
from tsexport.exporters.rewrites.spectral import MatrixSpectralConv
from tsexport.models.spectral import SpectralConv
from tsexport.runtimes.registry import load
from tsexport.types import Array, Artifact, Feeds, ModelSpec, Session, TensorSpec

SCHEMA_VERSION = 1
GOAL = 10.0
OURS, DFT = "products in ONNX Runtime", "DFT in ONNX Runtime"
SEED = 0
Call = Callable[[], Array]


class _Dft(torch.autograd.Function):
    """torch's transform of values [.., 2] along an axis, exported as the operator DFT."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, axis: int, inverse: bool, onesided: bool) -> Tensor:
        if onesided:
            return torch.view_as_real(torch.fft.rfft(values[..., 0], dim=axis))
        transform = torch.fft.ifft if inverse else torch.fft.fft
        return torch.view_as_real(transform(torch.view_as_complex(values.contiguous()), dim=axis))

    @staticmethod
    def symbolic(g: Any, values: Any, axis: int, inverse: bool, onesided: bool) -> Any:
        return g.op("DFT", values, axis_i=axis, inverse_i=int(inverse), onesided_i=int(onesided))


def transform(values: Tensor, axis: int, *, inverse: bool = False, onesided: bool = False) -> Tensor:
    """Return the unscaled transform of complex values [.., 2], or the scaled inverse, along an axis."""
    result: Tensor = _Dft.apply(values, axis, inverse, onesided)  # type: ignore[no-untyped-call]
    return result


class DftSpectralConv(MatrixSpectralConv):
    """The layer with DFT operators, for one sample; the mixing is inherited.

    `onesided` leaves the mirrored half of the first transform out; OpenVINO reads that attribute wrongly.  `early` cuts
    columns before the second transform, and adds zeros for them behind the third.
    """

    def __init__(self, layer: SpectralConv, *, onesided: bool, early: bool) -> None:
        super().__init__(layer)
        self.onesided = onesided
        self.between = self.columns if early else self.width // 2 + 1

    def forward(self, field: Tensor) -> Tensor:
        channels, rows, columns = self.channels, self.rows, self.columns
        signal = field.unsqueeze(-1)
        if not self.onesided:
            signal = torch.cat([signal, torch.zeros(1, channels, self.height, self.width, 1)], dim=4)
        spectrum = transform(signal, 3, onesided=self.onesided)[:, :, :, : self.between]
        spectrum = transform(spectrum, 2)[:, :, :, :columns]
        half = rows // 2
        low = torch.cat([spectrum[:, :, :half], spectrum[:, :, self.height - half :]], dim=2)
        mixed = self.mix(low.permute(2, 4, 0, 3, 1), self.latitude_weight, rows)
        mixed = mixed.reshape(rows, 2, -1, columns, channels).permute(3, 1, 2, 0, 4)
        mixed = self.mix(mixed, self.longitude_weight, columns)
        mixed = mixed.reshape(columns, 2, -1, rows, channels).permute(2, 4, 3, 0, 1)  # [batch, C, ky, kx, part]
        mixed = torch.cat([mixed, torch.zeros(1, channels, rows, self.between - columns, 2)], dim=3)
        none = torch.zeros(1, channels, self.height - rows, self.between, 2)
        tall = transform(torch.cat([mixed[:, :, :half], none, mixed[:, :, half:]], dim=2), 2, inverse=True)
        doubled = torch.cat([tall[:, :, :, :1], 2 * tall[:, :, :, 1:]], dim=3)
        none = torch.zeros(1, channels, self.height, self.width - self.between, 2)
        return transform(torch.cat([doubled, none], dim=3), 3, inverse=True)[..., 0]


@dataclass(frozen=True)
class Contestant:
    """Milliseconds of single calls, one a round; `relative_error` is the relative RMS error against float64."""

    name: str
    samples_ms: tuple[float, ...]
    relative_error: float
    than_dft: Ratio | None = None
    than_eager: Ratio | None = None


@dataclass(frozen=True)
class Report:
    """Everything that one run measured; `status` is that of the goal."""

    suite: str
    machine: Machine
    channels: int
    points: int
    modes: int
    threads: int
    contestants: tuple[Contestant, ...]
    goal: float
    status: Status
    load_average: tuple[float, float]
    schema_version: int = SCHEMA_VERSION


def export_dft(layer: SpectralConv, field: Tensor, path: Path, *, onesided: bool, early: bool = False) -> Path:
    """Write the layer with DFT operators as ONNX opset 17, for one sample."""
    module = DftSpectralConv(layer, onesided=onesided, early=early).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that this exporter is deprecated, and the tracer's about constant shapes
        torch.onnx.export(
            module, (field,), str(path), dynamo=False, opset_version=17, input_names=["field"], output_names=["mixed"]
        )
    return path


def contestants(layer: SpectralConv, field: Tensor, folder: Path, sessions: list[Session]) -> dict[str, Call]:
    """Return a call for each contestant; sessions that are opened are added to `sessions`."""
    shape = tuple(field.shape)  # one sample: proofs at other batches would take most of the suite's time
    spec = ModelSpec(
        "spectral-layer", "spectral", "unknown", (TensorSpec("field", "float32", shape),),
        (TensorSpec("mixed", "float32", shape),),
    )  # fmt: skip
    feeds: Feeds = {"field": field.numpy()}
    onnx = convert_to_onnx(layer, None, spec, None, folder / "products.onnx").artifact
    traced = convert_to_torchscript(layer, spec, None, folder / "products.pt").artifact
    ir = convert_to_openvino(onnx, folder / "products.xml").artifact
    early = replace(onnx, path=export_dft(layer, field, folder / "early.onnx", onesided=True, early=True))
    dft = replace(onnx, path=export_dft(layer, field, folder / "dft.onnx", onesided=True))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*torch.jit")
        fft = torch.jit.trace(layer, field)  # type: ignore[no-untyped-call]

    def opened(artifact: Artifact, runtime: str) -> Call:
        session = load(artifact, runtime, threads=1)
        sessions.append(session)
        return lambda: session.run(feeds)["mixed"]

    import openvino

    hints = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    path = export_dft(layer, field, folder / "dft-openvino.onnx", onesided=False)
    with_dft = openvino.Core().compile_model(path, "CPU", hints)
    return {
        OURS: opened(onnx, "onnxruntime"),
        "products in OpenVINO": opened(ir, "openvino"),
        "products in TorchScript": opened(traced, "torchscript"),
        "products in tract": opened(onnx, "tract"),
        DFT: opened(dft, "onnxruntime"),
        "DFT cut early in ONNX Runtime": opened(early, "onnxruntime"),
        "DFT in OpenVINO": lambda: np.array(with_dft([feeds["field"]])[0]),
        "eager torch.fft": lambda: layer(field).numpy(),
        "traced torch.fft": lambda: fft(field).numpy(),
    }


def measure(calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Return milliseconds of one call a round of each, after one to warm up."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if number:
                samples[name].append((time.perf_counter() - started) * 1e3)
        print(f"round {number} of {rounds}", file=sys.stderr)
    return samples


def run(channels: int, points: int, modes: int, rounds: int) -> Report:
    """Build every contestant, hold each against float64, and time them."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    layer = SpectralConv(channels, points, points, modes).eval().requires_grad_(False)
    field = torch.randn(1, channels, points, points)
    exact = _in_double(layer, field)
    before = os.getloadavg()[0]
    sessions: list[Session] = []
    with tempfile.TemporaryDirectory(prefix="tsexport-spectral-") as folder, torch.inference_mode():
        calls = contestants(layer, field, Path(folder), sessions)
        errors = {name: _relative_error(call(), exact) for name, call in calls.items()}
        samples = measure(calls, rounds)
        for session in sessions:
            session.close()

    def ratio(name: str, baseline: str) -> Ratio:
        return ratio_of_medians([[ms] for ms in samples[baseline]], [[ms] for ms in samples[name]], seed=SEED)

    found = tuple(
        Contestant(
            name,
            tuple(samples[name]),
            errors[name],
            None if name == DFT else ratio(name, "DFT in OpenVINO" if name == "products in OpenVINO" else DFT),
            None if name.startswith("eager") else ratio(name, "eager torch.fft"),
        )
        for name in calls
    )
    goal = found[0].than_dft
    assert goal is not None
    load_average = (before, os.getloadavg()[0])
    size = (channels, points, modes)
    return Report("spectral_layer", fingerprint(), *size, 1, found, GOAL, status_of(goal, GOAL), load_average)


def _in_double(layer: SpectralConv, field: Tensor) -> Array:
    double = SpectralConv(layer.channels, layer.latitudes, layer.longitudes, layer.latitude_modes).double()
    double.load_state_dict(layer.state_dict())
    with torch.inference_mode():
        answer: Array = double(field.double()).numpy()
    return answer


def _relative_error(actual: Array, exact: Array) -> float:
    return float(np.sqrt(np.mean((actual - exact) ** 2) / np.mean(exact**2)))


def report_text(report: Report) -> str:
    """Return the table as Markdown."""
    rows = [
        [
            one.name,
            f"{np.median(one.samples_ms):.1f}",
            ratio_text(one.than_dft),
            ratio_text(one.than_eager),
            f"{one.relative_error:.1e}",
        ]
        for one in report.contestants
    ]
    rounds = len(report.contestants[0].samples_ms)
    columns = ["contestant", "median ms", "x DFT", "x eager torch.fft", "relative RMS error"]
    return "\n".join(
        [
            f"# A spectral layer: {report.channels} channels on {report.points}x{report.points}, {report.modes} modes",
            "",
            f"{machine_text(report.machine)}; {threads_text(report.threads)}, batch 1, {rounds} interleaved rounds; "
            f"{load_text(report.load_average)}.",
            "",
            table(columns, rows),
            "",
            "x DFT is against DFT in ONNX Runtime, for products in OpenVINO against DFT there; with 95 % intervals.",
            "",
            f"Goal: {OURS} at least {report.goal:g} times faster than with DFT: {report.status}.",
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; a missed goal is no error."""
    args = _parser().parse_args(arguments)
    report = run(args.channels, args.points, args.modes, args.rounds)
    publish(report, report_text(report), args.output or results_path(report.suite, report.machine))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=256, help="256")
    parser.add_argument("--points", type=int, default=256, help="in each direction; 256")
    parser.add_argument("--modes", type=int, default=32, help="32")
    parser.add_argument("--rounds", type=int, default=12, help="calls of each contestant; an interval needs 8; 12")
    parser.add_argument("--output", type=Path, help="the .json to write; the .md goes beside it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
