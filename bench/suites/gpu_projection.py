"""Projections against what `gpu_runs.py` measured: how far they were, over every run and for each way of running.

The cases' models are exported to ONNX on this machine, whose shapes are all that a projection reads, and the measured
rows become rows of a .toml that `bench/suites/projection.py --runs` takes.  A projection is of an engine of the newest
TensorRT, whose kernels are fused and started together.  Where the host starts them one by one, its time is taken in,
fitted on the other models (`gpu_host.py`).  fp16 and bf16 count as one, and fp32 without TF32.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tsexport.bench.projection import fitted
from tsexport.bench.suites.gpu_cases import WAYS, Case
from tsexport.bench.suites.gpu_host import Run, with_host
from tsexport.bench.suites.gpu_records import GpuReport, GpuRow
from tsexport.bench.suites.projection import Placed, place, report_text, run
from tsexport.bench.suites.projection_records import Anchor, Report, Row
from tsexport.bench.suites.projection_totals import FASTEST, Total, fastest, total, way_of
from tsexport.bench.suites.report import publish, table
from tsexport.codec import decode, read_text, write_whole
from tsexport.devices import Device, device_of, list_devices
from tsexport.errors import DataError, TsexportError
from tsexport.exporters.conversion import convert_to_onnx
from tsexport.models.sources import identify, open_source

GRAPHS = "graphs"
SUITE = "gpu_runs"
HOST = (
    "Where there is no CUDA graph, the host starts kernels one by one: then it is what bounds a row, with the "
    "microseconds a kernel that fit the other models' runs best (`bench/suites/gpu_host.py`)."
)


def project_results(results: Path, output: Path) -> int:
    """Project every measured row of a results file; print the errors and write them.  Return the exit code."""
    try:
        report = decode(GpuReport, read_text(results), what="GPU results", error=DataError)
        device = _device_of(report)
        rows = [row for row in report.rows if row.status == "measured" and row.device is not None]
        if not rows:
            raise DataError(f"{results.name} holds no measured row", next_step="run the suite on a GPU first")
        export_graphs([row.case for row in rows], output / GRAPHS)
        anchors = [_anchor(row, device) for row in rows]
        path = write_whole(output / f"{results.stem}-runs.toml", runs_text(anchors, device))
        placed = place(anchors, path.parent)
    except TsexportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    found = run(anchors, placed, fitted().efficiency, fitted_on_these=False)
    found = report_of(found, with_host(_runs(rows, placed, found)))
    publish(found, projection_text(found, placed), output / f"projection-{results.stem}.json")
    return 0


def export_graphs(cases: Sequence[Case], folder: Path) -> None:
    """Write the ONNX graph of every case that is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in {case.graph: case for case in cases}.values():
        path = folder / f"{case.graph}.onnx"
        if path.is_file():
            continue
        print(f"exporting {case.graph}", file=sys.stderr, flush=True)
        source = open_source(identify(case.model, component=case.component, settings=dict(case.settings)))
        convert_to_onnx(source.module, None, source.spec, None, path)


def report_of(report: Report, rows: tuple[Row, ...]) -> Report:
    """Return a report with other rows for the same anchors, and their error."""
    if rows == report.rows:
        return report
    all_of_them = total("every GPU run", rows)
    error = replace(
        report.error, median=round(all_of_them.median, 4), left_out_median=round(all_of_them.median, 4),
        worst_ratio=round(all_of_them.worst_ratio, 4), worst_anchor=all_of_them.worst,
    )  # fmt: skip
    device, number, _, _ = report.of_devices[0]
    return replace(
        report, rows=rows, error=error, of_devices=((device, number, all_of_them.median, all_of_them.median),),
        status="met" if error.median <= report.goal else "missed",
    )  # fmt: skip


def _runs(measured: Sequence[GpuRow], placed: Sequence[Placed], report: Report) -> tuple[Run, ...]:
    return tuple(
        Run(one.case.model, one.way, row, sum(kernel.launches for kernel in at.work.kernels))
        for one, at, row in zip(measured, placed, report.rows, strict=True)
    )


def way_errors(report: Report) -> tuple[Total, ...]:
    """Return the error of each way that was run, in the order of WAYS, and of the fastest way of each model."""
    of_way = {way: [row for row in report.rows if way_of(row) == way] for way in WAYS}
    ways = [total(way, rows) for way, rows in of_way.items() if rows]
    return (*ways, total(FASTEST, fastest(report.rows)))


def projection_text(report: Report, placed: Sequence[Placed]) -> str:
    """Return the tables as Markdown: every row, then each way."""
    rows = [
        [one.name, f"{one.rows}", f"{100 * one.median:.0f} %", f"{one.worst_ratio:.2f}", one.worst]
        for one in way_errors(report)
    ]
    head = table(["way", "runs", "median error", "worst ratio", "of"], rows)
    return f"{report_text(report)}\n{HOST}\n\n## For each way\n\nOver all {len(placed)} runs: median "\
        f"{100 * report.error.median:.0f} %, worst ratio {report.error.worst_ratio:.2f}.\n\n{head}\n"  # fmt: skip


def runs_text(anchors: Sequence[Anchor], device: Device) -> str:
    """Return the .toml for `projection.py --runs`; its models lie in the folder GRAPHS beside it."""
    lines = [f"# Measured by {SUITE} on {device.title}, p50 between events on the stream.", "", "schema = 1"]
    for one in anchors:
        lines += ["", "[[anchor]]", f'model = "{one.model}"', f'device = "{one.device}"', f'mode = "{one.mode}"',
                  f'precision = "{one.precision}"', f"batch = {one.batch}", f"measured_ms = {one.measured_ms!r}",
                  f'statistic = "{one.statistic}"', "plugins = true", f'source = "{one.source}"']  # fmt: skip
    return "\n".join([*lines, ""])


def _anchor(row: GpuRow, device: Device) -> Anchor:
    assert row.device is not None
    return Anchor(
        model=f"{GRAPHS}/{row.case.graph}.onnx",
        device=device.name,
        mode=device.peak[0].mode,
        precision=row.case.precision,
        batch=row.case.batch,
        measured_ms=row.device.median_ms,
        statistic="p50",
        source=_source(row.way),
        plugins=True,
    )


def _source(way: str) -> str:
    return f"{SUITE}, {way}"


def _device_of(report: GpuReport) -> Device:
    gpu = report.runs[0].gpu
    if report.rehearsal or gpu is None:
        raise DataError(
            "the results are a rehearsal, and nothing in them ran on a GPU", next_step="run the suite on a GPU first"
        )
    known = {device.name: device for device in list_devices()}
    name = device_of(gpu)
    if name not in known or not known[name].peak:
        raise DataError(
            f"nothing is known of what a {gpu.name} reaches at peak, so nothing can be projected for it",
            next_step="add it to devices.toml",
        )
    return known[name]
