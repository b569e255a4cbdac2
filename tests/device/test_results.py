"""Reading what the device kit wrote: every generation of trtexec, and every way in which it can be damaged."""

import contextlib
import hashlib
import json
import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsexport.device.results import KEYS, DeviceRun, parse_run, parse_times, read_results
from tsexport.errors import DataError

TIMES = Path(__file__).parent / "times"
RUN_TEXT = "".join(
    f"{key}={value}\n"
    for key, value in {
        "schema": 1, "bundle": "b", "target": "a100-int8", "artifact": "int8-onnx", "precision": "int8",
        "quantization": "file", "graph_sha256": "a" * 64, "tensorrt": "10.3.0", "tensorrt_source": "trtexec",
        "engine_sha256": "b" * 64, "engine_bytes": 1000, "build_seconds": 0, "batches": "1 8",
        "cuda_device": "NVIDIA A100-SXM4-40GB", "compute_capability": "8.0", "board": "", "power_mode": "a=b",
        "driver": "550.1", "mig": "", "kernel": "6.1", "transfers": "included", "cuda_graph": "no", "spin_wait": "no",
        "warm_up_ms": 1000, "duration_s": 1, "iterations": 10,
    }.items()
)  # fmt: skip
RUN = parse_run(RUN_TEXT)


def run_of(version, transfers="included"):
    return replace(RUN, tensorrt=f"{version}.0", transfers=transfers)


def recorded(name):
    return (TIMES / f"{name}.json").read_text()


@pytest.mark.parametrize("name", ["8.2", "8.4", "8.5", "8.6", "10.3", "11.0", "11.0-with-transfers"])
def test_each_generation(name):
    version = name.partition("-")[0]
    run = run_of(version, "excluded" if name == "11.0" else "included")
    found = parse_times(recorded(name), run, batch=8, what="times-b8.json")
    rows = [row for row in json.loads(recorded(name)) if row["startComputeMs"] >= 1000]
    assert len(rows) == 12
    assert found.batch == 8
    assert found.samples_ms == tuple(row["latencyMs"] for row in rows)
    assert found.compute_ms == pytest.approx(sorted(row["computeMs"] for row in rows)[6], rel=1e-3)
    assert max(found.samples_ms) < 9, "the warm-up was slow, and is out"
    copies_ms = statistics.median(found.samples_ms) - found.compute_ms
    assert (0.03 < copies_ms < 0.05) == (name != "11.0")


@pytest.mark.parametrize(("name", "version"), [("8.2", "8.4"), ("8.4", "8.2"), ("8.2", "10.3"), ("10.3", "8.2")])
def test_another_generation_is_told(name, version):
    with pytest.raises(
        DataError, match=rf"(lacks|has unknown) endToEndMs; it is not what trtexec of TensorRT {version}"
    ):
        parse_times(recorded(name), run_of(version), batch=1, what="times-b1.json")


DAMAGE = {
    "cut off": (lambda text: text[:400], "times-b1.json is not valid JSON"),
    "empty": (lambda text: "", "times-b1.json is not valid JSON"),
    "empty list": (lambda text: "[]", "times-b1.json holds no list of times"),
    "no list": (lambda text: "{}", "times-b1.json holds no list of times"),
    "no object": (lambda text: "[1]", "times-b1.json, run 1 is no object of times"),
    "nan as C++ writes it": (lambda text: edit(text, "latencyMs", "nan"), "times-b1.json is not valid JSON"),
    "NaN": (lambda text: edit(text, "latencyMs", "NaN"), "times-b1.json is not valid JSON.*NaN"),
    "Infinity": (lambda text: edit(text, "computeMs", "1e999"), "run 2: computeMs is inf; times are finite numbers"),
    "negative": (lambda text: edit(text, "computeMs", "-7.3"), "run 2: computeMs is -7.3 ms; times are positive"),
    "negative copy": (lambda text: edit(text, "h2dMs", "-0.1"), "run 2: h2dMs is -0.1 ms; times are positive"),
    "zero": (lambda text: edit(text, "latencyMs", "0"), "run 2: latencyMs is 0 ms; times are positive"),
    "a word": (lambda text: edit(text, "latencyMs", '"7"'), "run 2: latencyMs is '7'; times are finite numbers"),
    "true": (lambda text: edit(text, "latencyMs", "true"), "run 2: latencyMs is True; times are finite numbers"),
    "a number beyond floats": (
        lambda text: edit(text, "startEnqMs", "9" * 400),
        r"run 2: startEnqMs is 9{40}; times are finite numbers",
    ),
    "microseconds": (
        lambda text: scaled(text, 1000, repeat=3),
        "ends after 1.08885e.06 ms with run 36, and trtexec was asked for 2000 ms and 10 runs: these are no milli",
    ),
    "seconds": (lambda text: scaled(text, 0.001), "ends after 1.08885 ms with run 12, .* these are no milliseconds"),
    "a sum": (lambda text: edit(text, "latencyMs", "9.99"), "latencyMs is 9.99, and .* they do not add up"),
    "wrong key": (
        lambda text: text.replace('"latencyMs"', '"latency"', 1),
        "run 1 lacks latencyMs; has unknown latency",
    ),
    "repeated key": (lambda text: text.replace('"d2hMs"', '"h2dMs"', 1), "times-b1.json is not valid JSON.*h2dMs"),
}


def edit(text, key, value):
    """Return the text with the second run's value of a key replaced."""
    lines = text.splitlines(keepends=True)
    lines[2] = re.sub(rf'("{key}" : )[-\d.e]+', rf"\g<1>{value}", lines[2])
    return "".join(lines)


def scaled(text, factor, repeat=1):
    """Return the text with its times, so often, in another unit."""
    rows = [{key: value * factor for key, value in row.items()} for row in json.loads(text)]
    return json.dumps(rows * repeat)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_times(damage):
    change, message = DAMAGE[damage]
    with pytest.raises(DataError, match=message) as raised:
        parse_times(change(recorded("10.3")), RUN, batch=1, what="times-b1.json")
    assert "run measure.sh again" in raised.value.next_step


def test_a_name_that_no_file_system_holds(folder):
    sums = folder / "SHA256SUMS"
    sums.write_text(sums.read_text() + f"{'0' * 64}  {'n' * 300}\n")
    with pytest.raises(DataError, match=r"n{80} cannot be read: File name too long"):
        read_results(folder)


def test_fewer_runs_than_asked_for():
    with pytest.raises(DataError, match="holds 12 runs after the warm-up, and trtexec was asked for 100"):
        parse_times(recorded("8.2"), replace(run_of("8.2"), iterations=100), batch=1, what="times-b1.json")


def test_copies_must_be_as_the_run_says():
    with pytest.raises(DataError, match=r"has no copies .*, and run.txt says that transfers are included"):
        parse_times(recorded("11.0"), run_of("11.0"), batch=1, what="times-b1.json")
    with pytest.raises(DataError, match=r"has copies .*, and run.txt says that transfers are excluded"):
        parse_times(recorded("11.0-with-transfers"), run_of("11.0", "excluded"), batch=1, what="times-b1.json")


def test_a_run():
    assert RUN.batches == (1, 8)
    assert (RUN.power_mode, RUN.board, RUN.cuda_graph, RUN.engine_bytes) == ("a=b", "", False, 1000)


@pytest.mark.parametrize(("old", "new", "message"), [
    ("schema=1", "schema=2", "run.txt has schema '2'; this tsexport reads schema 1"),
    ("batches=1 8", "batches=1 1", "batches is '1 1'; allowed is different whole numbers"),
    ("batches=1 8", "batches=1  8", "allowed is different whole numbers"),
    ("batches=1 8", "batches=0", "allowed is different whole numbers"),
    ("batches=1 8", "batches=../../x", "allowed is different whole numbers"),
    ("a" * 64, "a" * 63, "graph_sha256 is .* allowed is a SHA-256"),
    ("tensorrt=10.3.0", "tensorrt=10", "tensorrt is '10'; allowed is a version such as 10.3.0"),
    ("transfers=included", "transfers=some", "transfers is 'some'; allowed is included or excluded"),
    ("quantization=file", "quantization=", "quantization is ''; allowed is file or implicit"),
    ("cuda_graph=no", "cuda_graph=0", "cuda_graph is '0'; allowed is yes or no"),
    ("iterations=10", "iterations=0", "iterations is '0'; allowed is a whole number from 1 on"),
    ("iterations=10", "iterations=1\N{FULLWIDTH DIGIT ZERO}", "allowed is a whole number from 1 on"),
    ("driver=550.1\n", "", "run.txt lacks driver"),
    ("driver=550.1", "drivers=550.1", "run.txt line 18 has an unknown key"),
    ("driver=550.1", "bundle=c", "run.txt line 18 repeats a key"),
    ("driver=550.1", "550.1", "run.txt line 18 is no key=value"),
])  # fmt: skip
def test_damaged_runs(old, new, message):
    assert old in RUN_TEXT
    with pytest.raises(DataError, match=message):
        parse_run(RUN_TEXT.replace(old, new))


@given(st.one_of(st.text(), st.lists(st.tuples(st.sampled_from(KEYS), st.text())).map(
    lambda pairs: "".join(f"{key}={value}\n" for key, value in pairs)
)))  # fmt: skip
def test_any_text_is_a_run_or_an_error(text):
    with contextlib.suppress(DataError):
        assert isinstance(parse_run(text), DeviceRun)


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["h2dMs", "latencyMs", "x"]), inner),
    max_leaves=8,
))  # fmt: skip
def test_any_json_is_times_or_an_error(value):
    with pytest.raises(DataError):
        parse_times(json.dumps(value), RUN, batch=1, what="times-b1.json")


@pytest.fixture
def folder(tmp_path):
    """A finished folder of results, as measure.sh writes it."""
    root = tmp_path / "results"
    root.mkdir()
    (root / "engine.plan").write_bytes(b"engine")
    text = RUN_TEXT.replace("b" * 64, hashlib.sha256(b"engine").hexdigest())
    (root / "run.txt").write_text(text)
    for batch in (1, 8):
        (root / f"times-b{batch}.json").write_text(recorded("10.3"))
    (root / "nvidia-smi.txt").write_bytes(b"Clocks \xff")
    seal(root)
    return root


def seal(root):
    names = sorted(path.name for path in root.iterdir() if path.suffix in (".json", ".txt"))
    lines = [f"{hashlib.sha256((root / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (root / "SHA256SUMS").write_text("".join(lines))


def test_a_folder_of_results(folder):
    found = read_results(folder)
    assert [one.batch for one in found.measurements] == [1, 8]
    assert found.clocks == {"nvidia-smi.txt": "Clocks �"}
    (folder / "engine.plan").unlink()  # it is large, and may stay on the device
    assert read_results(folder) == found


def spoil(folder, name, text="spoilt"):
    (folder / name).write_text(text)


@pytest.mark.parametrize(("spoiling", "message"), [
    (lambda root: spoil(root, "engine.plan"), "engine.plan is not the engine that was measured"),
    (lambda root: spoil(root, "times-b8.json"), "times-b8.json is not as measure.sh wrote it"),
    (lambda root: spoil(root, "times-b9.json"), r"times-b9.json of .* was added: SHA256SUMS does not list it"),
    (lambda root: (root / "times-b8.json").unlink(), "times-b8.json is missing from .*, and SHA256SUMS lists it"),
    (lambda root: ((root / "times-b8.json").unlink(), seal(root)), "holds no times-b8.json, and run.txt names batch 8"),
    (lambda root: (root / "run.txt").unlink(), "holds no run.txt: it is no finished run of measure.sh"),
    (lambda root: (root / "SHA256SUMS").unlink(), "holds no SHA256SUMS: it is no finished run of measure.sh"),
    (lambda root: spoil(root, "SHA256SUMS", "a list\n"), "SHA256SUMS line 1 is not"),
    (lambda root: spoil(root, "SHA256SUMS", f"{'0' * 64}  ../run.txt\n"), "SHA256SUMS line 1 is not"),
    (lambda root: ((root / "nvidia-smi.txt").unlink(), (root / "nvidia-smi.txt").symlink_to("/etc/hosts")),
     "nvidia-smi.txt is missing from"),
    (lambda root: ((root / "run.txt").write_bytes(b"\xff"), seal(root)), "run.txt cannot be read"),
])  # fmt: skip
def test_damaged_folders(folder, spoiling, message):
    spoiling(folder)
    with pytest.raises(DataError, match=message):
        read_results(folder)


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match="there is no folder") as raised:
        read_results(tmp_path / "nothing")
    assert raised.value.next_step == "name the folder that measure.sh wrote to"
