"""`tsexport attach`: what came from a device is checked, judged on that device, and kept; nothing else changes."""

import hashlib
import json
import re
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from click.testing import CliRunner

import tsexport
from tsexport import cli
from tsexport.bench.device_records import read_device_record
from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.checksums import check_sums
from tsexport.bundles.measured import read_attached, read_measurements
from tsexport.device import attaching
from tsexport.errors import BundleError, DataError, UsageError
from tsexport.measurements import adding

HYBRID = {"name": "sfno-hybrid"}
"""It has a published row for a100 in int8: 12 ms at batch 1; and one for t4 in fp16: 35 ms."""
CACHE = "TRT-100300-EntropyCalibration2\nx: 3c010a14\n"


def digests(root):
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def row_of(record, device, kind="latency"):
    (found,) = (one for one in record.verdicts if one.budget.device == device and one.budget.kind == kind)
    return found


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    """Results by what they were made with, since every run of the kit takes a moment."""
    return tmp_path_factory.mktemp("kept"), {}


@pytest.fixture
def measured(device_bundle, kit_of, tmp_path, kept):
    """Return a function that gives a bundle and results that its kit measured under the stand-in.

    `tools` names programs of `add_tool` that the device has in this test.
    """
    folder, made = kept

    def make(
        target="a100-int8",
        device="host",
        *,
        version="10.3.0",
        milliseconds="2.5",
        options=(),
        build=(),
        cache="",
        tools=(),
    ):
        bundle = device_bundle(target, device, graph=target.rpartition("-")[2], model=HYBRID, batches=(1,), cache=cache)
        key = (target, device, version, milliseconds, options, build, cache, tools)
        if key not in made:
            kit = kit_of(bundle, milliseconds=milliseconds)
            made[key] = kit.measure(folder / str(len(made)), version=version, measure=options, build=build)
        return bundle, shutil.copytree(made[key], tmp_path / "results")

    return make


@pytest.mark.parametrize("version", ["8.2.1", "8.4.1", "8.5.2", "8.6.1", "10.3.0"])
def test_from_the_kit_to_a_verdict(measured, version):
    root, results = measured("a100-int8", "@tensorrt-8.2", version=version)
    before = digests(root)
    attached = tsexport.attach(root, results)
    record = attached.record
    assert (record.device.name, record.device.tensorrt) == ("NVIDIA A100-SXM4-40GB", version)
    assert (record.artifact, record.precision, record.transfers) == ("int8-onnx", "int8", "included")
    assert [len(one.samples_ms) for one in record.measurements] == [120]
    verdict = row_of(record, "a100")
    assert verdict.status == "met"
    # 2.5 ms x (1.00 to 1.09) for computing, and twice 5 % of 2.5 ms for the copies; the warm-up is out
    assert verdict.value_ms == pytest.approx(2.5 * 1.08 + 0.25, rel=1e-5)
    assert (
        f"on tensorrt {version}, batch 1, 120 samples, on NVIDIA A100-SXM4-40GB, TensorRT {version}" in verdict.reason
    )
    assert attached.exit_code == 0
    after = digests(root)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed == {attached.file, "measurements/SHA256SUMS", "report.html"}
    check_sums(root)
    assert read_device_record(root / attached.file) == record


def test_another_devices_rows_are_not_judged(measured):
    root, results = measured()
    record = tsexport.attach(root, results).record
    for device in ("t4", "jetson-nano"):
        assert row_of(record, device).status in ("not measured", "not possible")


def test_a_missed_row_is_attached_and_ends_with_4(measured):
    root, results = measured(milliseconds="13")
    ran = CliRunner().invoke(cli.main, ["attach", str(root), str(results)])
    assert ran.exit_code == 4, ran.output
    for expected in ("attached to tiny-a100-int8 as measurements/device-", "miss ", "12 ms allowed", "included"):
        assert expected in ran.output
    assert len(read_attached(open_bundle(root))) == 1


def test_latencies_without_copies_cannot_meet_a_budget(measured):
    root, results = measured(version="11.0.0")
    record = tsexport.attach(root, results).record
    assert (record.transfers, record.cuda_graph, record.spin_wait) == ("excluded", True, True)
    verdict = row_of(record, "a100")
    assert verdict.status == "inconclusive"
    assert "without the copies to and from the device, which decides nothing" in verdict.reason
    assert "measure.sh --with-transfers" in verdict.reason
    report = (root / "report.html").read_text()
    assert "Latencies leave out the copies to and from the device" in report
    assert "copies excluded" in report


def test_latencies_without_copies_can_miss_one(measured):
    root, results = measured(version="11.0.0", milliseconds="13")
    verdict = row_of(tsexport.attach(root, results).record, "a100")
    assert verdict.status == "missed"
    assert verdict.reason.endswith("without the copies to and from the device")


def test_with_the_copies_11_is_judged_as_10_is(measured):
    root, results = measured(version="11.0.0", options=("--with-transfers",))
    record = tsexport.attach(root, results).record
    assert record.transfers == "included"
    assert row_of(record, "a100").status == "met"


def test_an_implicitly_calibrated_engine_judges_nothing(measured):
    root, results = measured(cache=CACHE, build=("--implicit",))
    record = tsexport.attach(root, results).record
    assert (record.artifact, record.precision, record.quantization) == ("fp32-onnx", "int8", "implicit")
    assert {one.status for one in record.verdicts} == {"not measured"}
    assert "whose accuracy was not verified" in row_of(record, "a100").reason
    assert "was not verified" in (root / "report.html").read_text()


def test_a_jetson_with_its_power_mode(measured, add_tool):
    add_tool("nvpmodel", 'echo "NV Power Mode: MAXN_SUPER"; echo 2')
    root, results = measured("jetson-int8", tools=("nvpmodel",))
    record = tsexport.attach(root, results).record
    assert str(record.device) == "NVIDIA Jetson Orin Nano Developer Kit, MAXN_SUPER, TensorRT 10.3.0"
    assert record.clocks == {"nvpmodel.txt": "NV Power Mode: MAXN_SUPER\n2\n"}
    assert row_of(record, "jetson-nano").status == "not possible"
    report = (root / "report.html").read_text()
    assert "Measured on NVIDIA Jetson Orin Nano Developer Kit" in report
    assert "NV Power Mode: MAXN_SUPER" in report
    for tag in ("section", "details", "table", "div", "p"):
        assert report.count(f"</{tag}>") == len(re.findall(rf"<{tag}[ >]", report)), tag
    assert read_measurements(open_bundle(root)) == ()
    assert open_bundle(root).verify().passed


def test_the_same_results_once(measured, tmp_path):
    root, results = measured()
    first = tsexport.attach(root, results)
    before = digests(root)
    copy = shutil.copytree(results, tmp_path / "copied")
    with pytest.raises(
        UsageError, match=f"these results are attached already: {first.file} of tiny-a100-int8 holds them"
    ):
        tsexport.attach(root, copy)
    assert digests(root) == before


def test_two_runs_stand_side_by_side(measured, tmp_path):
    root, results = measured()
    again = shutil.copytree(results, tmp_path / "again")
    rewrite(again, "power_mode=", "power_mode=15W")
    files = {tsexport.attach(root, folder).file for folder in (results, again)}
    assert len(files) == 2
    assert {one.device.power_mode for one in read_attached(open_bundle(root))} == {"", "15W"}
    check_sums(root)


def test_two_at_once_wait_for_each_other(measured, tmp_path):
    root, results = measured()
    folders = [results, *(shutil.copytree(results, tmp_path / f"run {number}") for number in range(3))]
    for number, folder in enumerate(folders):
        rewrite(folder, "power_mode=", f"power_mode={number} W")
    with ThreadPoolExecutor() as pool:
        assert len({one.file for one in pool.map(lambda folder: tsexport.attach(root, folder), folders)}) == 4
    check_sums(root)
    assert len(read_attached(open_bundle(root))) == 4


def rewrite(results, old, new, name="run.txt"):
    """Change a file of the results and list its digest anew, as somebody would who knows the format."""
    text = (results / name).read_text()
    assert old in text
    (results / name).write_text(text.replace(old, new, 1))
    lines = [line for line in (results / "SHA256SUMS").read_text().splitlines(True) if not line.endswith(f"  {name}\n")]
    lines.append(f"{hashlib.sha256((results / name).read_bytes()).hexdigest()}  {name}\n")
    (results / "SHA256SUMS").write_text("".join(lines))


@pytest.mark.parametrize(("old", "new", "message"), [
    ("cuda_device=NVIDIA A100", "cuda_device=NVIDIA H100", "the results are of NVIDIA H100-SXM4-40GB"),
    ("compute_capability=8.0", "compute_capability=9.0", "the bundle is for a100 .compute capability 8.0."),
    ("compute_capability=8.0", "compute_capability=", "compute capability unknown"),
    ("tensorrt=10.3.0", "tensorrt=8.6.1", "the results are of TensorRT 8.6.1, and the bundle's kit takes 10.3 to 11.1"),
    ("target=a100-int8", "target=a100-fp16", "the results are for the target a100-fp16"),
    ("precision=int8", "precision=fp16", "the results say fp16, and the graph int8-onnx is int8"),
    ("quantization=file", "quantization=implicit", "only fp32 graphs are calibrated so"),
    ("iterations=100", "iterations=500", "holds 120 runs after the warm-up, and trtexec was asked for 500"),
])  # fmt: skip
def test_foreign_results_change_nothing(measured, old, new, message):
    root, results = measured()
    rewrite(results, old, new)
    before = digests(root)
    with pytest.raises(DataError, match=message) as raised:
        tsexport.attach(root, results)
    assert raised.value.next_step
    assert digests(root) == before


def test_a_slice_of_a_gpu_is_not_that_gpu(measured, add_tool):
    add_tool("nvidia-smi", 'case "$*" in *mig.mode*) echo Enabled;; *) echo clocks;; esac')
    root, results = measured(tools=("nvidia-smi",))
    with pytest.raises(DataError, match="the results are of a MIG slice of NVIDIA A100-SXM4-40GB"):
        tsexport.attach(root, results)
    rewrite(results, "mig=Enabled", "mig=Disabled")
    rewrite(results, "NVIDIA A100-SXM4-40GB\n", "NVIDIA A100-SXM4-40GB MIG 1g.5gb\n")
    with pytest.raises(DataError, match=r"the results are of a MIG slice of NVIDIA A100-SXM4-40GB MIG 1g\.5gb"):
        tsexport.attach(root, results)
    rewrite(results, " MIG 1g.5gb\n", "\n")
    assert row_of(tsexport.attach(root, results).record, "a100").status == "met"


def test_results_of_another_graph(measured):
    root, results = measured()
    digest = open_bundle(root).manifest.artifact("int8-onnx").files[0].sha256
    rewrite(results, f"graph_sha256={digest}", f"graph_sha256={'0' * 64}")
    before = digests(root)
    ran = CliRunner().invoke(cli.main, ["attach", str(root), str(results)])
    assert ran.exit_code == 2
    assert (
        "the results are of another graph: its SHA-256 is 000000000000..., of int8-onnx in tiny-a100-int8" in ran.output
    )
    assert "attach them to the bundle whose kit made them" in ran.output
    assert digests(root) == before


def test_damaged_results_change_nothing(measured):
    root, results = measured()
    times = results / "times-b1.json"
    times.write_text(times.read_text()[:2000])
    before = digests(root)
    with pytest.raises(DataError, match=r"times-b1\.json is not as measure.sh wrote it: its SHA-256 differs"):
        tsexport.attach(root, results)
    assert digests(root) == before


def test_a_damaged_bundle(measured):
    root, results = measured()
    (root / "README.md").write_text("changed")
    with pytest.raises(BundleError, match=r"is not as it was written: changed: README\.md"):
        tsexport.attach(root, results)


def test_what_nothing_can_be_attached_to(measured, bundle_folder, tmp_path):
    root, results = measured()
    with pytest.raises(UsageError, match="is for cpu4-int8: it has no device kit"):
        tsexport.attach(bundle_folder, results)
    with tarfile.open(tmp_path / "packed.tar", "w") as archive:
        archive.add(root, arcname=root.name)
    with pytest.raises(UsageError, match="is an archive, which nothing can be attached to") as raised:
        tsexport.attach(tmp_path / "packed.tar", results)
    assert raised.value.next_step.startswith("unpack it")


@pytest.mark.parametrize("step", ["render_report", "seal_measurements"])
def test_a_full_disk_leaves_the_bundle_as_it_was(measured, monkeypatch, step):
    root, results = measured()
    before = digests(root)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(adding, step, full)
    with pytest.raises(UsageError, match="cannot be written to: No space left on device"):
        tsexport.attach(root, results)
    assert digests(root) == before


def test_what_a_kill_left_is_removed(measured):
    root, results = measured()
    leftover = root.with_name(f".{root.name}.12-0123abcd.building")
    leftover.mkdir()
    (leftover / "report.html").write_text("half")
    tsexport.attach(root, results)
    check_sums(root)
    assert not leftover.exists()


def test_one_that_is_replaced_meanwhile_is_left_as_it_is(measured, monkeypatch):
    root, results = measured()
    write = attaching.write_device_record

    def replace(record, folder):
        root.rename(root.with_name("old"))
        shutil.copytree(root.with_name("old"), root)
        return write(record, folder)

    monkeypatch.setattr(attaching, "write_device_record", replace)
    before = digests(root)
    with pytest.raises(UsageError, match="was replaced meanwhile, and the new one is left as it is") as caught:
        tsexport.attach(root, results)
    assert caught.value.next_step == "do it again, to the bundle that stands there now"
    assert digests(root) == before


def test_an_interrupt_leaves_the_bundle_as_it_was(measured, monkeypatch):
    root, results = measured()
    before = digests(root)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(adding, "seal_measurements", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tsexport.attach(root, results)
    assert digests(root) == before


def test_a_damaged_record_is_named(measured):
    root, results = measured()
    path = root / tsexport.attach(root, results).file
    text = path.read_text()
    for damaged, message in (
        (text.replace('"schema_version": 1', '"schema_version": 9'), "has schema_version 9"),
        (text[:100], "is not valid JSON"),
        (text.replace('"engine_bytes"', '"engine_size"'), "engine_size"),
    ):
        path.write_text(damaged)
        with pytest.raises(BundleError, match=message):
            read_device_record(path)
    path.unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        read_device_record(path)


def test_json(measured):
    root, results = measured()
    ran = CliRunner().invoke(cli.main, ["attach", str(root), str(results), "--json"])
    assert ran.exit_code == 0
    document = json.loads(ran.stdout)
    assert document["schema_version"] == 1
    assert document["record"]["device"]["tensorrt"] == "10.3.0"
    assert (root / document["file"]).exists()
