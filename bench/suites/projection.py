"""How far projections are from public latencies: ResNets and BERTs on A100, T4, Jetson Nano, Xavier NX and AGX Orin.

The models are written for this (`anchor_models.py`), the figures are the project's copy (`bench/data/anchors.toml`).
Each anchor is projected as any bundle is; printed are projected / measured, and the median and worst of
|projected / measured - 1|.  Goal: a median within 35 %.

The efficiencies were fitted on these same anchors, so their error here flatters.  Beside it stands the error with each
device left out in turn: efficiencies are fitted on the anchors of the others and judged on its own.  `--fit` fits
anew and writes bench/data/projection.toml: the bandwidth's share stands at 0.7, which streaming kernels reach; the
other three are those of a grid with the least sum of squares of log(projected / measured).

How to run, from a checkout where tsexport is installed with its extra `build`; nothing is timed:

    python bench/suites/projection.py [--fit]
    python bench/suites/projection.py --runs FILE.toml --output FILE.json

Results go to bench/results/projection.json and .md.  `--runs` judges other measurements by the efficiencies as they
are: rows as those of anchors.toml, whose `model` may be the path of an ONNX file, relative to that of the rows.  What
such a file holds in fp32 counts as fp16 where the row is of fp16 or bf16; a row of fp32 is one without TF32.

The last table takes the GPU runs in, as `gpu_runs.py --project` left them in bench/results: alone and together.

What it does not say: what holds for devices without anchors or runs, the Orin Nano and H100 among them: the error with
a device left out is the better guess.
"""

import argparse
import itertools
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from tsexport.bench.projection import AnchorError, Efficiency, Fitted, fitted, peak_flops, project, share_of_peak
from tsexport.bench.suites.anchor_models import ANCHOR_MODELS, anchor_model
from tsexport.bench.suites.goals import Status
from tsexport.bench.suites.projection_records import Anchor, Report, Row
from tsexport.bench.suites.projection_totals import read_gpu_runs, totals, totals_text
from tsexport.bench.suites.report import RESULTS, publish, table
from tsexport.codec import from_plain
from tsexport.devices import Device, Peak, list_devices
from tsexport.errors import ConfigurationError, TsexportError
from tsexport.exporters.onnx_external import open_model
from tsexport.quantize.fusing import Fusion
from tsexport.quantize.kernels import count
from tsexport.work import GraphWork

DATA = Path(__file__).resolve().parent.parent / "data"
ONNX = ".onnx"
GOAL = 0.35
_HALVES = ("fp16", "bf16")
PLUGINS = Fusion(rows=True, attention=True)
WITHOUT_PLUGINS = Fusion(rows=False, attention=False)
BANDWIDTH = 0.7
_TENSOR_CORES = np.arange(0.2, 0.86, 0.02)
_PLAIN_CORES = np.arange(0.3, 0.96, 0.02)
_LAUNCH_US = np.arange(1.0, 15.1, 0.5)
FITTED_ON_THESE = (
    "The bandwidth's share was set, the other three fitted on these same anchors; the last column of the second table "
    "is the error where a device's own anchors were left out of the fit."
)
FITTED_ELSEWHERE = "They were fitted on public latencies, and on none of these."


@dataclass(frozen=True)
class Anchors:
    """anchors.toml."""

    schema: int
    anchor: tuple[Anchor, ...]


@dataclass(frozen=True)
class Placed:
    """An anchor with what its graph does, and the device it ran on."""

    anchor: Anchor
    work: GraphWork
    device: Device
    peak: Peak

    def ratio(self, efficiency: Efficiency) -> float:
        """Return projected / measured."""
        return project(self.work, self.device, self.peak, efficiency).total_ms / self.anchor.measured_ms


def load_anchors(path: Path = DATA / "anchors.toml") -> tuple[Anchor, ...]:
    """Return the published latencies.

    Raises:
        ConfigurationError: no TOML, an unknown or missing key, or a value of another type.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path.name} cannot be read as TOML: {error}") from None
    return from_plain(Anchors, document, what=path.name, error=ConfigurationError, defaults=True).anchor


def place(anchors: Sequence[Anchor], folder: Path = DATA) -> tuple[Placed, ...]:
    """Return the anchors that are projected, each with its counted graph.

    Args:
        folder: where a `model` that is the path of an ONNX file begins.

    Raises:
        ConfigurationError: an anchor names a device or a mode that is not in devices.toml, or a model that is not here.
    """
    devices = {device.name: device for device in list_devices()}
    models = {}
    placed = []
    for one in anchors:
        if one.left_out:
            continue
        peaks = devices[one.device].peak if one.device in devices else ()
        peak = next((peak for peak in peaks if peak.mode == one.mode), None)
        if peak is None:
            raise ConfigurationError(f"{one}: devices.toml has no {one.device!r} in mode {one.mode!r}")
        key = (one.model, one.precision, one.tokens)
        if key not in models:
            models[key] = _model(one, folder)
        fusion = PLUGINS if one.plugins else WITHOUT_PLUGINS
        # The INT8 engines of the public sources compute the rest in fp16.
        floats = "fp16" if one.precision in _HALVES or not one.model.endswith(ONNX) else None
        work = count(models[key], one.batch, fusion, floats=floats)
        as_built = replace(peak, tf32_tflops=None) if one.precision == "fp32" else peak
        placed.append(Placed(one, work, devices[one.device], as_built))
    return tuple(placed)


def _model(anchor: Anchor, folder: Path) -> onnx.ModelProto:
    if anchor.model.endswith(ONNX):
        path = folder / anchor.model
        if not path.is_file():
            raise ConfigurationError(f"{anchor}: there is no file {path}")
        return open_model(path)
    if anchor.model not in ANCHOR_MODELS:
        raise ConfigurationError(f"{anchor}: models are {', '.join(ANCHOR_MODELS)}, or the path of an {ONNX} file")
    return anchor_model(anchor.model, anchor.precision, anchor.tokens)


def fit(placed: Sequence[Placed]) -> Efficiency:
    """Return the efficiencies of the grid with the least sum of squares of log(projected / measured).

    Where no anchor ran without tensor cores, plain cores get the share of tensor cores.
    """
    plain = [one for one in placed if _is_plain(one)]
    tensor = [one for one in placed if not _is_plain(one)]
    found = []
    for launch in _LAUNCH_US:
        best_tensor, of_tensor = _best_share(tensor, _TENSOR_CORES, float(launch))
        best_plain, of_plain = _best_share(plain, _PLAIN_CORES, float(launch)) if plain else (best_tensor, 0.0)
        found.append((of_tensor + of_plain, Efficiency(best_tensor, best_plain, BANDWIDTH, round(float(launch), 3))))
    return min(found, key=lambda pair: pair[0])[1]


def _is_plain(one: Placed) -> bool:
    probe = Efficiency(0.0, 1.0, 1.0, 0.0)
    return all(share_of_peak(one.device, one.peak, name, probe) == 1.0 for name in one.work.macs())


def _best_share(placed: Sequence[Placed], shares: NDArray[np.float64], launch_us: float) -> tuple[float, float]:
    """Return the share with the least sum of squares of log(projected / measured), and that sum."""
    errors = np.zeros(len(shares))
    for one in placed:
        rates = {name: peak_flops(one.device, one.peak, name) for name in one.work.macs()}
        compute = np.array(
            [sum(2e3 * number / rates[name] for name, number in kernel.macs.items()) for kernel in one.work.kernels]
        )
        moved = np.array([kernel.bytes_read + kernel.bytes_written for kernel in one.work.kernels])
        memory = moved / (one.peak.bandwidth_gb_s * 1e6 * BANDWIDTH)
        launches = sum(kernel.launches for kernel in one.work.kernels) * launch_us / 1e3
        totals = launches + np.maximum(compute[:, None] / shares, memory[:, None]).sum(axis=0)
        errors += np.log(totals / one.anchor.measured_ms) ** 2
    best = int(np.argmin(errors))
    return round(float(shares[best]), 3), float(errors[best])


def without_each_device(placed: Sequence[Placed]) -> dict[str, list[float]]:
    """Return, for each device, its ratios with efficiencies that were fitted on the others."""
    found = {}
    for device in dict.fromkeys(one.anchor.device for one in placed):
        efficiency = fit([one for one in placed if one.anchor.device != device])
        found[device] = [one.ratio(efficiency) for one in placed if one.anchor.device == device]
    return found


def by_device(placed: Sequence[Placed], efficiency: Efficiency) -> dict[str, list[float]]:
    """Return the ratios of each device."""
    devices = dict.fromkeys(one.anchor.device for one in placed)
    return {name: [one.ratio(efficiency) for one in placed if one.anchor.device == name] for name in devices}


def error_of(placed: Sequence[Placed], efficiency: Efficiency, left_out: dict[str, list[float]]) -> AnchorError:
    """Return how far projections with these efficiencies are from the anchors."""
    ratios = [one.ratio(efficiency) for one in placed]
    worst, anchor = max(zip(ratios, placed, strict=True), key=lambda pair: abs(np.log(pair[0])))
    return AnchorError(
        anchors=len(placed),
        median=round(median_error(ratios), 4),
        left_out_median=round(median_error(list(itertools.chain.from_iterable(left_out.values()))), 4),
        worst_ratio=round(worst, 4),
        worst_anchor=str(anchor.anchor),
    )


def median_error(ratios: Sequence[float]) -> float:
    """Return the median of |ratio - 1|."""
    return float(np.median(np.abs(np.array(ratios) - 1)))


def run(
    anchors: Sequence[Anchor], placed: Sequence[Placed], efficiency: Efficiency, fitted_on_these: bool = True
) -> Report:
    """Project every anchor.

    Args:
        anchors: all that are carried.
        placed: those that are projected.
        efficiency: what projections assume.
        fitted_on_these: whether the efficiencies come from these anchors, so that leaving some out is a question.
    """
    rows = []
    for one in placed:
        projected = project(one.work, one.device, one.peak, efficiency)
        rows.append(Row(one.anchor, projected.total_ms, projected.least_ms, one.ratio(efficiency), projected.bound))
    left_out = without_each_device(placed) if fitted_on_these else by_device(placed, efficiency)
    of_devices = tuple(
        (device, len(ratios), median_error([row.ratio for row in rows if row.anchor.device == device]),
         median_error(ratios))
        for device, ratios in left_out.items()
    )  # fmt: skip
    error = error_of(placed, efficiency, left_out)
    status: Status = "met" if error.median <= GOAL else "missed"
    not_projected = tuple(one for one in anchors if one.left_out)
    return Report(
        "projection", efficiency, tuple(rows), not_projected, of_devices, error, GOAL, status, fitted_on_these
    )


def report_text(report: Report) -> str:
    """Return the tables as Markdown."""
    e, error = report.efficiency, report.error
    rows = [
        [str(row.anchor), f"{row.anchor.measured_ms:.3f}", f"{row.projected_ms:.3f}", f"{row.ratio:.2f}", row.bound,
         f"{row.least_ms:.3f}"]
        for row in report.rows
    ]  # fmt: skip
    devices = [
        [name, f"{number}", f"{100 * median:.0f} %", f"{100 * out:.0f} %"]
        for name, number, median, out in report.of_devices
    ]
    median = f"{100 * error.median:.0f} %"
    return "\n".join(
        [
            f"# Projected against {'public' if report.fitted_on_these else 'other'} latencies",
            "",
            f"Projected, not measured: a roofline with {e.tensor_cores:.0%} of the dense peak on tensor cores, "
            f"{e.plain_cores:.0%} on plain cores, {e.bandwidth:.0%} of the bandwidth, and {e.launch_us:g} us a kernel. "
            + (FITTED_ON_THESE if report.fitted_on_these else FITTED_ELSEWHERE),
            "",
            table(["anchor", "measured ms", "projected ms", "ratio", "bound by", "at least ms"], rows),
            "",
            f"Worst ratio: {error.worst_ratio:.2f}, {error.worst_anchor}.",
            "",
            table(["device", "anchors", "median error", "left out of the fit"], devices),
            "",
            table(
                ["goal", "median error", "left out of the fit", "status"],
                [[f"median within {100 * report.goal:.0f} %", median, f"{100 * error.left_out_median:.0f} %",
                  report.status]],
            ),
            "",
            f"{len(report.left_out)} published figures are carried and not projected:",
            "",
            *(f"- {one}: {one.left_out}" for one in report.left_out),
            "",
        ]
    )  # fmt: skip


def fitted_text(found: Fitted) -> str:
    """Return bench/data/projection.toml."""
    e, error = found.efficiency, found.error
    return "\n".join(
        [
            "# Written by `python bench/suites/projection.py --fit`: the efficiencies that projections assume, fitted",
            "# on the public latencies of anchors.toml, and the error left there.  The bandwidth's share was set.",
            "",
            f"schema = {found.schema}",
            "",
            "[efficiency]",
            f"tensor_cores = {e.tensor_cores}",
            f"plain_cores = {e.plain_cores}",
            f"bandwidth = {e.bandwidth}",
            f"launch_us = {e.launch_us}",
            "",
            "[error]",
            f"anchors = {error.anchors}",
            f"median = {error.median}",
            f"left_out_median = {error.left_out_median}",
            f"worst_ratio = {error.worst_ratio}",
            f'worst_anchor = "{error.worst_anchor}"',
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; return the exit code.  A missed goal is no error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="fit the efficiencies anew and write projection.toml")
    parser.add_argument("--runs", type=Path, help="a .toml of other measurements, to judge instead of the anchors")
    parser.add_argument("--output", type=Path, default=RESULTS / "projection.json", help="the .json to write")
    args = parser.parse_args(arguments)
    if args.runs is not None and (args.fit or args.output == RESULTS / "projection.json"):
        parser.error("--runs judges and fits nothing, and needs an --output of its own")
    path = args.runs or DATA / "anchors.toml"
    try:
        anchors = load_anchors(path)
        placed = place(anchors, path.parent)
    except TsexportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    efficiency = fit(placed) if args.fit else fitted().efficiency
    report = run(anchors, placed, efficiency, fitted_on_these=args.runs is None)
    if args.fit:
        text = fitted_text(Fitted(1, report.efficiency, report.error))
        (DATA / "projection.toml").write_text(text, encoding="utf-8")
    text = report_text(report)
    if args.runs is None:
        try:
            found = totals(report.rows, read_gpu_runs(report.efficiency))
        except TsexportError as error:
            print(f"error: {error}; {error.next_step}", file=sys.stderr)
            return error.exit_code
        text = f"{text}\n{totals_text(found, GOAL)}"
    publish(report, text, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
