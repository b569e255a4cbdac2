"""The roofline: figures worked out by hand, what each bound is called, what a device lacks, and what never grows."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.bench.outlook import (
    ProjectionRecord,
    outlook_row,
    outlooks,
    read_projection,
    rows_of,
    write_projection,
)
from tsexport.bench.projected_rows import kernel_rows, projection_rows
from tsexport.bench.projection import CACHE_BYTES, Efficiency, fitted, peak_flops, project
from tsexport.bench.tables import latency_budgets
from tsexport.devices import Peak, list_devices
from tsexport.errors import BundleError, UnsupportedError
from tsexport.types import Budget
from tsexport.work import GraphWork, KernelWork

DEVICES = {device.name: device for device in list_devices()}
EXACT = 1e-9
HALF = Efficiency(tensor_cores=0.5, plain_cores=0.25, bandwidth=0.5, launch_us=10.0)
NANO = DEVICES["jetson-nano"]


def work(*kernels, least_bytes=0, batch=1):
    return GraphWork(batch, kernels, least_bytes)


def kernel(macs=None, read=0, written=0, launches=1, name="k"):
    return KernelWork(name, ("MatMul",), macs or {}, read, written, launches)


def on_t4(graph, efficiency=HALF):
    device = DEVICES["t4"]
    return project(graph, device, device.peak[0], efficiency)


def test_a_kernel_takes_a_launch_and_the_longer_of_products_and_memory():
    # T4: 65 TFLOP/s in fp16 and 320 GB/s.  6.5 GMACs are 13 GFLOP: 0.4 ms at half the peak; 16 MB: 0.1 ms at half.
    found = on_t4(work(kernel({"fp16": 6_500_000_000}, 12_000_000, 4_000_000)))
    assert found.total_ms == pytest.approx(0.4 + 0.01, rel=EXACT)
    assert found.bound == "compute"
    assert (found.compute_ms, found.memory_ms, found.launch_ms) == (found.total_ms, 0, 0)


def test_the_longest_part_is_what_bounds_a_kernel():
    found = on_t4(work(kernel(read=16_000_000, name="memory"), kernel(read=16, name="launch")))
    assert [one.bound for one in found.kernels] == ["memory", "launch"]
    assert found.memory_ms == pytest.approx(0.1 + 0.01, rel=EXACT)
    assert found.bound == "memory"


def test_a_recurrence_pays_for_every_step():
    assert on_t4(work(kernel(launches=60))).total_ms == pytest.approx(0.6, rel=EXACT)


def test_precisions_add_up_at_their_own_peaks():
    # 65 GMACs are 130 G operations: 1 ms in int8 at the peak of 130 TOP/s, 2 ms in fp16.
    full = Efficiency(1.0, 1.0, 1.0, 0.0)
    both = on_t4(work(kernel({"int8": 65 * 10**9, "fp16": 65 * 10**9})), full)
    assert both.total_ms == pytest.approx(3.0, rel=EXACT)


def test_plain_cores_have_an_efficiency_of_their_own():
    # T4 has no TF32, so fp32 runs on plain cores at 8.1 TFLOP/s; the Nano has no tensor cores at all.
    fp32 = on_t4(work(kernel({"fp32": 4_050_000_000})))
    assert fp32.total_ms == pytest.approx(4 * 1.0 + 0.01, rel=EXACT)
    fp16 = project(work(kernel({"fp16": 236_000_000})), NANO, NANO.peak[0], HALF)
    assert fp16.total_ms == pytest.approx(4 * 1.0 + 0.01, rel=EXACT)


def test_the_lower_bound_takes_full_peaks_and_no_launches():
    graph = work(kernel({"fp16": 32_500_000_000}), kernel({"fp16": 32_500_000_000}), least_bytes=10**6)
    assert on_t4(graph).least_ms == pytest.approx(2.0, rel=EXACT)


def test_what_a_cache_could_hold_is_not_in_the_lower_bound():
    assert on_t4(work(kernel(), least_bytes=CACHE_BYTES)).least_ms == 0
    more = on_t4(work(kernel(), least_bytes=CACHE_BYTES + 320_000_000))
    assert more.least_ms == pytest.approx(1.0, rel=EXACT)


def test_a_device_without_the_arithmetic_is_an_error_that_names_what_it_has():
    with pytest.raises(UnsupportedError, match=r"Jetson Nano .* in int8, the device in fp32, fp16") as caught:
        project(work(kernel({"int8": 1})), NANO, NANO.peak[0])
    assert "fp32 or fp16" in caught.value.next_step
    with pytest.raises(UnsupportedError, match="T4: the graph computes in bf16"):
        on_t4(work(kernel({"bf16": 1})))
    with pytest.raises(UnsupportedError, match="computes in fp8"):
        on_t4(work(kernel({"fp8": 1})))


@pytest.mark.parametrize(
    ("device", "precision", "tflops"),
    [("a100", "fp32", 156), ("a100", "bf16", 312), ("a100", "int8", 624), ("t4", "fp32", 8.1), ("h200", "fp16", 989.5)],
)
def test_the_dense_peaks_are_those_of_the_table(device, precision, tflops):
    assert peak_flops(DEVICES[device], DEVICES[device].peak[0], precision) == tflops * 1e12


counts = st.integers(0, 10**12)
graphs = st.lists(
    st.builds(
        kernel,
        macs=st.dictionaries(st.sampled_from(["fp32", "fp16", "int8"]), counts, max_size=3),
        read=counts,
        written=counts,
        launches=st.integers(1, 100),
    ),
    min_size=1,
    max_size=5,
)


@given(graphs, counts, st.floats(1.0, 50.0), st.sampled_from(["bandwidth_gb_s", "fp16_tflops", "int8_tops"]))
@settings(deadline=None)
def test_more_of_anything_is_never_slower(kernels, least, factor, what):
    device = DEVICES["t4"]
    peak = device.peak[0]
    better = dataclasses.replace(peak, **{what: getattr(peak, what) * factor})
    slow, fast = (project(work(*kernels, least_bytes=least), device, one) for one in (peak, better))
    assert fast.total_ms <= slow.total_ms * (1 + EXACT)
    assert fast.least_ms <= slow.least_ms * (1 + EXACT)


@given(graphs, st.integers(0, 4), counts)
@settings(deadline=None)
def test_more_work_is_never_faster(kernels, index, more):
    first = kernels[index % len(kernels)]
    for changed in (
        dataclasses.replace(first, bytes_read=first.bytes_read + more),
        dataclasses.replace(first, macs={**first.macs, "fp16": first.macs.get("fp16", 0) + more}),
    ):
        after = [changed if one is first else one for one in kernels]
        assert on_t4(work(*after)).total_ms >= on_t4(work(*kernels)).total_ms * (1 - EXACT)


@given(graphs)
@settings(deadline=None)
def test_the_estimate_is_the_sum_of_its_kernels_and_of_its_bounds(kernels):
    found = on_t4(work(*kernels))
    assert found.total_ms == pytest.approx(sum(one.ms for one in found.kernels), rel=EXACT)
    assert found.total_ms == pytest.approx(found.launch_ms + found.memory_ms + found.compute_ms, rel=EXACT)


@given(graphs)
@settings(deadline=None)
def test_products_alone_never_take_less_than_the_lower_bound(kernels):
    found = project(work(*kernels), DEVICES["t4"], DEVICES["t4"].peak[0])
    assert found.total_ms >= found.least_ms


def row(max_ms=10.0, device="t4", precision="fp16", batch=1, **more):
    return Budget("latency", "m", device, precision, batch, max_ms=max_ms, source="a test", **more)


ANSWERS = [
    # 65 GMACs in fp16 on a T4 take 2 ms at peak and 4.01 ms by these efficiencies.
    (5.0, "could be met"),
    (3.0, "projected to miss"),
    (1.9, "cannot be met even at peak"),
]


@pytest.mark.parametrize(("max_ms", "answer"), ANSWERS)
def test_each_row_has_one_of_three_answers(max_ms, answer):
    (found,) = outlooks([row(max_ms)], [on_t4(work(kernel({"fp16": 65 * 10**9})))], "fp16")
    assert found.answer == answer
    assert str(found) == f"projected 4.01 ms (70 W; bound by compute; at least 2 ms at peak): {answer}"
    shown = outlook_row(found)
    assert shown == ("m", "t4", "fp16", "1", f"p90 <= {max_ms:g} ms", "4.01 ms (70 W)", "2 ms", "compute", answer)


def test_another_precision_than_the_rows_is_said():
    (found,) = outlooks([row(precision="int8")], [on_t4(work(kernel({"fp16": 65 * 10**9})))], "fp16")
    assert "in fp16, where the row asks for int8" in str(found)
    assert outlook_row(found)[2] == "fp16, not int8"


def test_the_best_mode_of_a_device_answers():
    device = DEVICES["orin-nano"]
    graph = work(kernel({"int8": 10**10}))
    (found,) = outlooks([row(device="orin-nano")], [project(graph, device, peak) for peak in device.peak], "int8")
    assert found.mode == "MAXN super"


def test_rows_of_other_devices_and_kinds_get_no_answer():
    budgets = [
        row(),
        row(device="gpu"),
        row(device="a100"),
        row(device=None),
        row(via="http"),
        row(batch=None),
        row(max_ms=None, min_ms=5.0),
        dataclasses.replace(row(), kind="memory"),
    ]
    assert rows_of(budgets, "t4") == (budgets[0], budgets[1])
    assert outlooks([row(batch=7)], [on_t4(work(kernel()))], "fp16") == ()


def test_the_published_row_of_the_original_nano_cannot_be_met_even_at_peak():
    """A step of 595 GFLOP takes 1.26 s at the board's 0.472 TFLOP/s, whatever is fused."""
    budgets = rows_of(latency_budgets("sfno-hybrid", "spectral"), "jetson-nano")
    step = work(kernel({"fp16": 595 * 10**9 // 2}))
    (found,) = outlooks(budgets, [project(step, NANO, NANO.peak[0])], "fp16")
    assert found.budget.max_ms == 200
    assert found.answer == "cannot be met even at peak"
    assert found.least_ms == pytest.approx(1261, abs=1)


def test_rows_of_text_are_labelled_and_in_order():
    found = on_t4(work(kernel({"fp16": 65 * 10**9}, name="big"), kernel(read=1, name="small")))
    (shown,) = projection_rows([found])
    assert (shown.batch, shown.mode, shown.total, shown.least, shown.kernels) == ("1", "70 W", "4.02 ms", "2 ms", "2")
    assert (shown.bound, shown.compute, shown.memory) == ("compute", "100%", "0%")
    first, second = kernel_rows(found)
    assert (first.name, first.macs, first.precision, first.bound) == ("big", "65,000,000,000", "fp16", "compute")
    assert (second.name, second.moved, second.bound) == ("small", "1", "launch")
    assert len(kernel_rows(found, most=1)) == 1


def record(**more):
    known = fitted()
    found = on_t4(work(kernel({"fp16": 10**9}, 10, 20)))
    return ProjectionRecord(
        "t4", "T4", "10.3", "a", "fp16", known.efficiency, known.error, ("an assumption",), (found,),
        outlooks([row()], [found], "fp16"), **more,
    )  # fmt: skip


def test_a_record_is_read_as_it_was_written_and_calls_itself_projected(tmp_path):
    path = write_projection(record(), tmp_path)
    assert path == tmp_path / "projected" / "t4.json"
    assert read_projection(path) == record()
    assert '"kind": "projected"' in path.read_text()
    assert write_projection(record(), tmp_path).read_bytes() == path.read_bytes()
    assert [one.name for one in path.parent.iterdir()] == ["t4.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "t4.json"),
        ('{"schema_version": 2}', "has schema_version 2"),
        ('{"schema_version": 1, "kind": "measured"}', "t4.json"),
        ("\udcff", "cannot be read"),
    ],
)
def test_a_damaged_record_is_an_error_that_names_its_file(tmp_path, text, message):
    path = tmp_path / "t4.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BundleError, match=message):
        read_projection(path)


def test_the_fitted_efficiencies_are_shares():
    known = fitted()
    e = known.efficiency
    assert all(0 < share < 1 for share in (e.tensor_cores, e.plain_cores, e.bandwidth))
    assert e.launch_us > 0


def test_tf32_is_no_faster_than_fp16():
    for device in DEVICES.values():
        for peak in device.peak:
            assert isinstance(peak, Peak)
            if peak.tf32_tflops is not None:
                assert peak.fp32_tflops < peak.tf32_tflops <= peak.fp16_tflops
