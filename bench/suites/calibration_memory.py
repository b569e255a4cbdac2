"""Peak memory of reading calibration data: 1,000 against 100,000 windows, from csv, parquet and npz.

usage: calibration_memory.py [--windows N ...]     print the table for all formats
       calibration_memory.py read FILE              read one file and print one JSON line, of which the table consists
       calibration_memory.py read FILE --keep       the same, holding on to every batch: reading without streaming
       calibration_memory.py read FILE --rows-only  only the rows of a series, without windows: for very long files
       calibration_memory.py observe FILE METHOD    take the ranges of a small graph's tensors on an .npz's windows

Windows of 128 rows by 8 columns, stride 1, horizon 1, standard scaling, batches of 64.  Every figure is the high-water
mark of the resident memory (VmHWM) of a fresh process, measured on this machine.  ru_maxrss would not do: a child
inherits its parent's through vfork.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import get_args

import numpy as np

from tsexport.calibration.table import Method

CONTEXT, COLUMNS, BATCH = 128, 8, 64
FORMATS = ("csv", "parquet", "npz")
MIB = 1 << 20


def peak_bytes() -> int:
    """Return the most resident memory that this process ever had (Linux)."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match, "/proc/self/status has no VmHWM"
    return int(match[1]) * 1024


def write_file(path: Path, windows: int) -> Path:
    """Write a series, or an array, of so many windows; one parquet row group, the worst case."""
    generator = np.random.default_rng(0)
    if path.suffix == ".npz":
        sample = generator.standard_normal((CONTEXT, COLUMNS)).astype(np.float32)
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open("x.npy", "w", force_zip64=True) as member,
        ):
            header = {"descr": "<f4", "fortran_order": False, "shape": (windows, CONTEXT, COLUMNS)}
            np.lib.format.write_array_header_1_0(member, header)
            for _ in range(windows):
                member.write(sample.tobytes())
        return path
    import pyarrow as pa
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    rows = windows + CONTEXT
    values = generator.standard_normal((rows, COLUMNS)).cumsum(axis=0)
    table = pa.table({f"c{i}": values[:, i] for i in range(COLUMNS)})
    if path.suffix == ".csv":
        pc.write_csv(table, path)
    else:
        pq.write_table(table, path, row_group_size=rows)
    return path


def read(path: Path, keep: bool) -> dict[str, float]:
    """Read every window of a file, and say what it took."""
    from tsexport.calibration.opening import open_dataset
    from tsexport.calibration.series import SeriesConfig, Splits

    config = SeriesConfig(context_length=CONTEXT, horizon=1, split=Splits(train=1.0))
    started = time.perf_counter()
    dataset = open_dataset(path, series=config, split="train", names=("x",))
    kept, total, windows = [], 0.0, 0
    for batch in dataset.batches(BATCH):
        total += float(batch.feeds["x"].sum(dtype=np.float64))
        windows += len(batch)
        if keep:
            kept.append(batch)
    seconds = time.perf_counter() - started
    return {"windows": windows, "sum": total, "peak_bytes": peak_bytes(), "seconds": seconds}


def read_rows(path: Path) -> dict[str, float]:
    """Read the rows of a series, and say what it took."""
    from tsexport.calibration.tables import open_table

    table = open_table(path)
    rows = sum(len(block.values) for block in table.blocks(table.columns, 0, table.row_count))
    return {"rows": rows, "peak_bytes": peak_bytes()}


def write_graph(path: Path) -> Path:
    """Write a graph over the windows, with tensors worth observing: [batch, CONTEXT, COLUMNS] each."""
    import onnx
    from onnx import helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((COLUMNS, COLUMNS)).astype(np.float32)
    float32, shape = onnx.TensorProto.FLOAT, ["batch", CONTEXT, COLUMNS]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "w"], ["y"]),
        ],
        "observed",
        [helper.make_tensor_value_info("x", float32, shape)],
        [helper.make_tensor_value_info("y", float32, shape)],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def observe(path: Path, method: Method) -> dict[str, float]:
    """Calibrate on every window of an .npz, and say what it took."""
    from tsexport.calibration.arrays import NpzDataset
    from tsexport.calibration.table import Observer, calibrate

    observer = Observer(method, percentile=99.99 if method == "percentile" else None)
    dataset = NpzDataset(path)
    with tempfile.TemporaryDirectory() as folder:
        table = calibrate(write_graph(Path(folder) / "observed.onnx"), dataset, ("x", "a", "b", "y"), observer)
    return {"windows": dataset.count, "tensors": len(table.ranges), "peak_bytes": peak_bytes()}


def read_in_fresh_process(path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "read", str(path)]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def print_table(sizes: tuple[int, ...]) -> None:
    print(f"{'format':8} {'windows':>9} {'as float32':>11} {'peak':>10} {'growth':>10} {'windows/s':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for name in FORMATS:
            first = None
            for windows in sizes:
                result = read_in_fresh_process(write_file(Path(folder) / f"{windows}.{name}", windows))
                assert result["windows"] == windows
                peak = result["peak_bytes"] / MIB
                first = peak if first is None else first
                size = windows * CONTEXT * COLUMNS * 4 / MIB
                rate = windows / result["seconds"]
                print(f"{name:8} {windows:9,} {size:7.0f} MiB {peak:6.1f} MiB {peak - first:+6.1f} MiB {rate:10,.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    one = commands.add_parser("read", help="read one file and print a JSON line")
    one.add_argument("file", type=Path)
    one.add_argument("--keep", action="store_true", help="hold on to every batch")
    one.add_argument("--rows-only", action="store_true", help="read the rows of a series without cutting windows")
    ranges = commands.add_parser("observe", help="take ranges on an .npz's windows and print a JSON line")
    ranges.add_argument("file", type=Path)
    ranges.add_argument("method", choices=get_args(Method))
    parser.add_argument("--windows", type=int, nargs="+", default=[1_000, 100_000])
    args = parser.parse_args()
    if args.command == "read":
        print(json.dumps(read_rows(args.file) if args.rows_only else read(args.file, args.keep)))
    elif args.command == "observe":
        print(json.dumps(observe(args.file, args.method)))
    else:
        print_table(tuple(args.windows))


if __name__ == "__main__":
    main()
