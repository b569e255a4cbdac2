"""What the device kit wrote on a device, read and checked: nothing in it is taken on trust.

A folder of results holds `run.txt` (a "key=value" a line), `times-b<batch>.json` (what trtexec exported),
`SHA256SUMS` of all of it, and texts about the device.  The engine is checked where it came along; it may stay behind.

trtexec's --exportTimes writes one list of objects with times in ms (NVIDIA's sources, samples/common/
sampleReporting.cpp, `exportJSONTrace`).  Its generations differ: 8.2 has `endToEndMs` too, 8.2 and 8.4 keep the runs of
the warm-up in it (they begin before its end), and from 11 on copies are not made by default: `h2dMs` and `d2hMs` are 0.
`latencyMs` is h2dMs + computeMs + d2hMs everywhere.
"""

import hashlib
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsexport.bench.device_records import DeviceMeasurement, Quantization, Transfers
from tsexport.codec import parse_json
from tsexport.errors import DataError
from tsexport.types import file_sha256

RUN, SUMS, ENGINE = "run.txt", "SHA256SUMS", "engine.plan"
CLOCKS = ("nvpmodel.txt", "jetson_clocks.txt", "nvidia-smi.txt")
KEYS = (
    "schema", "bundle", "target", "artifact", "precision", "quantization", "graph_sha256", "tensorrt",
    "tensorrt_source", "engine_sha256", "engine_bytes", "build_seconds", "batches", "cuda_device",
    "compute_capability", "board", "power_mode", "driver", "mig", "kernel", "transfers", "cuda_graph", "spin_wait",
    "warm_up_ms", "duration_s", "iterations",
)  # fmt: skip
TIMES = (
    "startEnqMs", "endEnqMs", "startH2dMs", "endH2dMs", "startComputeMs", "endComputeMs", "startD2hMs", "endD2hMs",
    "h2dMs", "computeMs", "d2hMs", "latencyMs",
)  # fmt: skip
END_TO_END = "endToEndMs"
_DURATIONS = ("h2dMs", "computeMs", "d2hMs", "latencyMs")
_WITHOUT_WARM_UP_FROM = (8, 5)
_WITH_END_TO_END_BEFORE = (8, 4)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
_VERSION = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}")
_SUM = re.compile(r"([0-9a-f]{64}) [ *]([^/\\]+)")
_MAX_TEXT_BYTES, _MAX_TIMES_BYTES = 4 * 2**20, 512 * 2**20
_LATENCY_TOLERANCE = 1e-3
"""Relative and in ms: trtexec prints six digits of a float32, and takes differences of times since the start."""
_LONGEST_MS = 1e9
"""Eleven days: no run of the kit's is as long, and no time in it."""
_LOST_TO_WARM_UP = 10
"""trtexec counts its warm-up by the clock of the host, and leaves it out by that of the GPU."""
AGAIN = "run measure.sh again, and copy its whole folder"


@dataclass(frozen=True)
class DeviceRun:
    """run.txt, with every value checked.

    `tensorrt` has three parts, such as "10.3.0"; `mig` is "Enabled" where the GPU is cut into slices.
    """

    bundle: str
    target: str
    artifact: str
    precision: str
    quantization: Quantization
    graph_sha256: str
    tensorrt: str
    engine_sha256: str
    engine_bytes: int
    batches: tuple[int, ...]
    cuda_device: str
    compute_capability: str
    board: str
    power_mode: str
    driver: str
    mig: str
    kernel: str
    transfers: Transfers
    cuda_graph: bool
    spin_wait: bool
    warm_up_ms: int
    duration_s: int
    iterations: int


@dataclass(frozen=True)
class DeviceResults:
    """A whole folder of results: the run, its measurements, the texts about the device, and the digest of all."""

    run: DeviceRun
    measurements: tuple[DeviceMeasurement, ...]
    clocks: Mapping[str, str]
    sums_sha256: str


def read_results(folder: Path) -> DeviceResults:
    """Return the results of a folder that measure.sh wrote.

    Raises:
        DataError: there is no such folder, a file is missing, changed, damaged or too large, a key of run.txt is
            missing, unknown or has a value that cannot be, times are not finite, not positive or do not add up, or
            there are fewer than were asked for.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}", next_step="name the folder that measure.sh wrote to")
    for name in (RUN, SUMS):
        if not (folder / name).is_file():
            raise DataError(f"{folder} holds no {name}: it is no finished run of measure.sh", next_step=AGAIN)
    _check_sums(folder)
    run = parse_run(_text(folder / RUN))
    if _digest(folder / ENGINE) not in ("", run.engine_sha256):
        raise DataError(
            f"{ENGINE} is not the engine that was measured: its SHA-256 differs from that in {RUN}", next_step=AGAIN
        )
    measurements = []
    for batch in run.batches:
        path = folder / f"times-b{batch}.json"
        if not path.is_file():
            raise DataError(f"{folder} holds no {path.name}, and {RUN} names batch {batch}", next_step=AGAIN)
        measurements.append(parse_times(_text(path, _MAX_TIMES_BYTES), run, batch=batch, what=path.name))
    clocks = {name: _text(folder / name) for name in CLOCKS if (folder / name).is_file()}
    return DeviceResults(run, tuple(measurements), clocks, hashlib.sha256((folder / SUMS).read_bytes()).hexdigest())


def parse_run(text: str) -> DeviceRun:
    """Return what run.txt holds.

    Raises:
        DataError: a line without "=", an unknown, missing or repeated key, or a value that cannot be.
    """
    values: dict[str, str] = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        key, equals, value = line.partition("=")
        if not equals or key not in KEYS or key in values:
            problem = "is no key=value" if not equals else "has an unknown key" if key not in KEYS else "repeats a key"
            raise _damaged(f"{RUN} line {number} {problem}: {line[:80]!r}")
        values[key] = value
    missing = [key for key in KEYS if key not in values]
    if missing:
        raise _damaged(f"{RUN} lacks {', '.join(missing)}")
    if values["schema"] != "1":
        raise DataError(
            f"{RUN} has schema {values['schema']!r}; this tsexport reads schema 1",
            next_step="use the tsexport that wrote the kit",
        )
    quantization, transfers = values["quantization"], values["transfers"]
    if quantization not in ("file", "implicit"):
        raise _value("quantization", quantization, "file or implicit")
    if transfers not in ("included", "excluded"):
        raise _value("transfers", transfers, "included or excluded")
    return DeviceRun(
        bundle=values["bundle"],
        target=values["target"],
        artifact=values["artifact"],
        precision=values["precision"],
        quantization="file" if quantization == "file" else "implicit",
        graph_sha256=_matched(values, "graph_sha256", _DIGEST, "a SHA-256 in lower-case hex"),
        tensorrt=_matched(values, "tensorrt", _VERSION, "a version such as 10.3.0"),
        engine_sha256=_matched(values, "engine_sha256", _DIGEST, "a SHA-256 in lower-case hex"),
        engine_bytes=_positive(values, "engine_bytes"),
        batches=_batches(values["batches"]),
        cuda_device=values["cuda_device"],
        compute_capability=values["compute_capability"],
        board=values["board"],
        power_mode=values["power_mode"],
        driver=values["driver"],
        mig=values["mig"],
        kernel=values["kernel"],
        transfers="included" if transfers == "included" else "excluded",
        cuda_graph=_yes(values, "cuda_graph"),
        spin_wait=_yes(values, "spin_wait"),
        warm_up_ms=_positive(values, "warm_up_ms"),
        duration_s=_positive(values, "duration_s"),
        iterations=_positive(values, "iterations"),
    )


def parse_times(text: str, run: DeviceRun, *, batch: int, what: str) -> DeviceMeasurement:
    """Return the latencies that trtexec exported at a batch size, without its warm-up.

    Raises:
        DataError: no JSON list of such objects for the run's version, times that are not finite, not positive, do not
            add up or are no milliseconds, copies where the run says there are none or none where it says there are, or
            too few.
    """
    rows = parse_json(text, what=what, error=DataError, next_step=AGAIN)
    if not isinstance(rows, list) or not rows:
        raise _damaged(f"{what} holds no list of times")
    version = version_of(run.tensorrt)
    keys = (*TIMES, END_TO_END) if version < _WITH_END_TO_END_BEFORE else TIMES
    for number, row in enumerate(rows, start=1):
        _check_row(row, keys, f"{what}, run {number}", run.tensorrt)
    if version < _WITHOUT_WARM_UP_FROM:
        rows = [row for row in rows if row["startComputeMs"] >= run.warm_up_ms]
    if len(rows) < max(1, run.iterations - _LOST_TO_WARM_UP):
        raise _damaged(f"{what} holds {len(rows)} runs after the warm-up, and trtexec was asked for {run.iterations}")
    _check_end(rows, run, what)
    copied = any(row["h2dMs"] > 0 or row["d2hMs"] > 0 for row in rows)
    if copied != (run.transfers == "included"):
        found = "has copies to and from the device" if copied else "has no copies to and from the device"
        raise _damaged(f"{what} {found}, and {RUN} says that transfers are {run.transfers}")
    return DeviceMeasurement(
        batch=batch,
        samples_ms=tuple(float(row["latencyMs"]) for row in rows),
        compute_ms=statistics.median(float(row["computeMs"]) for row in rows),
    )


def version_of(version: str) -> tuple[int, int]:
    """Return (major, minor) of a version such as "10.3.0"."""
    major, minor, _ = version.split(".")
    return int(major), int(minor)


def _check_row(row: Any, keys: tuple[str, ...], where: str, tensorrt: str) -> None:
    if not isinstance(row, dict):
        raise _damaged(f"{where} is no object of times")
    if row.keys() != set(keys):
        lacks, extra = sorted(set(keys) - row.keys()), sorted(row.keys() - set(keys))
        problem = "; ".join(
            f"{verb} {', '.join(names)}" for verb, names in (("lacks", lacks), ("has unknown", extra)) if names
        )
        raise _damaged(f"{where} {problem}; it is not what trtexec of TensorRT {tensorrt} exports")
    for key in keys:
        value = row[key]
        if type(value) not in (int, float) or not -_LONGEST_MS < value < _LONGEST_MS:
            raise _damaged(f"{where}: {key} is {value!r:.40}; times are finite numbers")
        if key in _DURATIONS and (value < 0 or (value == 0 and key in ("computeMs", "latencyMs"))):
            raise _damaged(f"{where}: {key} is {value:g} ms; times are positive")
    total = row["h2dMs"] + row["computeMs"] + row["d2hMs"]
    if abs(row["latencyMs"] - total) > _LATENCY_TOLERANCE * (1 + total):
        raise _damaged(
            f"{where}: latencyMs is {row['latencyMs']:g}, and its parts are {total:g} together: they do not add up"
        )


def _check_end(rows: Sequence[Mapping[str, float]], run: DeviceRun, what: str) -> None:
    """Tell times that are no milliseconds: trtexec ends once the duration is over and the iterations are reached."""
    asked_ms = run.warm_up_ms + 1000 * run.duration_s
    end_ms = max(row["endComputeMs"] for row in rows)
    late = len(rows) > 2 * run.iterations and end_ms > 2 * asked_ms + max(row["latencyMs"] for row in rows)
    if end_ms < asked_ms / 2 or late:
        raise _damaged(
            f"{what} ends after {end_ms:g} ms with run {len(rows)}, and trtexec was asked for {asked_ms} ms and "
            f"{run.iterations} runs: these are no milliseconds"
        )


def _check_sums(folder: Path) -> None:
    lines = _text(folder / SUMS).removesuffix("\n").split("\n")
    listed = set()
    for number, line in enumerate(lines, start=1):
        match = _SUM.fullmatch(line)
        if match is None:
            raise _damaged(f"{SUMS} line {number} is not '<sha256>  <file>': {line[:80]!r}")
        name = match[2]
        listed.add(name)
        digest = _digest(folder / name)
        if not digest:
            raise _damaged(f"{name[:80]} is missing from {folder}, and {SUMS} lists it")
        if digest != match[1]:
            raise _damaged(f"{name} is not as measure.sh wrote it: its SHA-256 differs from {SUMS}")
    present = {path.name for path in folder.glob("times-b*.json")} | {RUN}
    present |= {name for name in CLOCKS if (folder / name).exists()}
    if present - listed:
        raise _damaged(f"{', '.join(sorted(present - listed))} of {folder} was added: {SUMS} does not list it")


def _digest(path: Path) -> str:
    """Return a file's SHA-256, "" where there is no such file."""
    try:
        return "" if path.is_symlink() or not path.is_file() else file_sha256(path)
    except OSError as error:
        raise _damaged(f"{path.name[:80]} cannot be read: {error.strerror}") from None


def _text(path: Path, limit: int = _MAX_TEXT_BYTES) -> str:
    try:
        if path.is_symlink() or path.stat().st_size > limit:
            raise _damaged(f"{path.name} is a link or far too large (more than {limit} bytes)")
        return path.read_text(encoding="utf-8", errors="replace" if path.name in CLOCKS else "strict")
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(f"{path.name} cannot be read: {error}") from None


def _matched(values: Mapping[str, str], key: str, pattern: re.Pattern[str], allowed: str) -> str:
    if not pattern.fullmatch(values[key]):
        raise _value(key, values[key], allowed)
    return values[key]


def _positive(values: Mapping[str, str], key: str) -> int:
    if not _NUMBER.fullmatch(values[key]) or values[key] == "0":
        raise _value(key, values[key], "a whole number from 1 on")
    return int(values[key])


def _yes(values: Mapping[str, str], key: str) -> bool:
    if values[key] not in ("yes", "no"):
        raise _value(key, values[key], "yes or no")
    return values[key] == "yes"


def _batches(text: str) -> tuple[int, ...]:
    words = text.split(" ")
    good = all(_NUMBER.fullmatch(word) and word != "0" for word in words) and len(set(words)) == len(words)
    if not good:
        raise _value("batches", text, "different whole numbers from 1 on, with a space between them")
    return tuple(map(int, words))


def _value(key: str, value: str, allowed: str) -> DataError:
    return _damaged(f"{RUN}: {key} is {value[:80]!r}; allowed is {allowed}")


def _damaged(message: str) -> DataError:
    return DataError(message, next_step=AGAIN)
