"""Why an artifact is not faster: the roofline by hand, and rows that mix no projection with a measurement."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsexport.bench.records import Balance, read_record, record_to_text
from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.checksums import seal
from tsexport.bundles.manifest import manifest_text
from tsexport.reports.explaining import bound_of, explanations, least_ms
from tsexport.reports.writing import render_report
from tsexport.work import Coverage

# 100 GMAC/s in fp32, 300 in int8, 20 GB/s, 80 GB/s in a cache
BALANCE = Balance(1, 100.0, 300.0, 20.0, 80.0)
HALF = Coverage(macs=600_000_000, int8_macs=300_000_000, operators=40, conversions=6, weight_bytes=30_000_000,
                activation_bytes=10_000_000)  # fmt: skip


def test_the_roofline_is_that_of_both_kinds_of_products_and_of_all_bytes():
    products, memory = least_ms(HALF, BALANCE)
    assert products == pytest.approx(3.0 + 1.0)
    assert memory == pytest.approx(2.0)
    assert HALF.int8_share == 0.5
    assert HALF.macs_per_byte == pytest.approx(15.0)


@pytest.mark.parametrize(
    ("coverage", "median_ms", "bound"),
    [
        (HALF, 5.0, "products: 15 MACs a byte, this machine sustains 7.5 for each it moves"),
        (HALF, None, "products: 15 MACs a byte, this machine sustains 7.5 for each it moves"),
        (
            replace(HALF, weight_bytes=300_000_000),
            20.0,
            "memory: 1.94 MACs a byte, this machine sustains 7.5 for each it moves",
        ),
        (
            HALF,
            40.0,
            "neither products nor memory: 10 times its bound, which leaves its 40 operators, 6 of them conversions",
        ),
    ],
)
def test_what_holds_an_artifact_up(coverage, median_ms, bound):
    assert bound_of(coverage, BALANCE, median_ms) == bound


def test_what_is_small_moves_at_the_rate_of_a_cache():
    small = replace(HALF, weight_bytes=3_000_000, activation_bytes=900_000)
    assert least_ms(small, BALANCE)[1] == pytest.approx(3.9e6 / 80e9 * 1e3)
    assert least_ms(replace(small, weight_bytes=3_200_000), BALANCE)[1] == pytest.approx(4.1e6 / 20e9 * 1e3)


def test_what_may_be_integers_is_not_known_and_counts_for_the_bound_from_below(manifest, record):
    hidden = replace(HALF, int8_macs=0, unknown_macs=300_000_000, unknown="the runtime does not show it")
    assert hidden.int8_share is None
    assert hidden.int8_text == "not known, 0% to 50%"
    assert least_ms(hidden, BALANCE) == least_ms(HALF, BALANCE)
    selected, *others = manifest.candidates
    (row,) = explanations(replace(manifest, candidates=(replace(selected, coverage=hidden), *others)), record)
    assert row.int8_share == "not known, 0% to 50%"
    assert row.bound.endswith("; share in int8 not known: the runtime does not show it")
    (row,) = explanations(replace(manifest, candidates=(replace(selected, coverage=hidden), *others)), None)
    assert row.bound == "not measured; share in int8 not known: the runtime does not show it"


@given(st.integers(0, 10**12), st.floats(0, 1), st.integers(0, 10**9), st.integers(0, 10**9), st.floats(1e-3, 1e4))
def test_any_artifact_has_a_bound(macs, share, weights, activations, median_ms):
    coverage = Coverage(macs, int(share * macs), 3, 1, weights, activations)
    assert all(value >= 0 for value in least_ms(coverage, BALANCE))
    assert bound_of(coverage, BALANCE, median_ms).startswith(("products", "memory", "neither"))
    assert 0 <= coverage.int8_share <= 1


@pytest.fixture
def record(measured_folder):
    (path,) = (measured_folder / "measurements").glob("*.json")
    return replace(read_record(path), balance=BALANCE)


@pytest.fixture
def manifest(measured_folder):
    """The example's selected candidate, with what it computes."""
    found = open_bundle(measured_folder).manifest
    selected, *others = found.candidates
    recipe = {**selected.recipe, "float_layers": ("encoder.0", "head")}
    return replace(found, coverage=HALF, candidates=(replace(selected, coverage=HALF, recipe=recipe), *others))


def test_the_selected_candidate_has_a_row_with_projection_and_measurement_apart(manifest, record):
    (row,) = explanations(manifest, record)
    assert (row.artifact, row.runtime) == ("int8-onnx", "onnxruntime")
    assert (row.macs, row.int8_share, row.conversions, row.moved, row.intensity) == (
        "600 M",
        "50%",
        "6 of 40",
        "40 MB",
        "15",
    )
    assert row.projected == "4 ms"
    median = next(e for race in record.races for e in race.entries if e.artifact == "int8-onnx").summary.median_ms
    assert row.measured == f"{median:.3g} ms"
    assert row.float_layers == "encoder.0, head"


def test_without_a_race_nothing_is_said_to_be_measured(manifest, record):
    for one in (None, replace(record, races=(), balance=None)):
        (row,) = explanations(manifest, one)
        assert (row.projected, row.measured, row.bound) == ("not measured",) * 3
        assert row.int8_share == "50%"


def test_where_fp32_is_selected_it_comes_first_and_the_candidates_behind_it(manifest, record):
    selected, *others = manifest.candidates
    fp32 = replace(
        manifest,
        selected=replace(manifest.selected, artifact="fp32-onnx"),
        coverage=replace(HALF, int8_macs=0, conversions=0),
        candidates=(replace(selected, status="eligible"), *others),
    )
    rows = explanations(fp32, record)
    assert [(row.artifact, row.int8_share) for row in rows] == [("fp32-onnx", "0%"), ("int8-onnx", "50%")]


def test_what_was_not_counted_has_no_row(measured_folder, record):
    assert explanations(open_bundle(measured_folder).manifest, record) == ()


def test_the_report_shows_them_beside_what_the_machine_sustains(manifest, record, measured_folder):
    """Float layers, the share in int8 and conversions of every candidate, and the table of why."""
    (path,) = (measured_folder / "measurements").glob("*.json")
    path.write_text(record_to_text(record))
    (measured_folder / "manifest.json").write_text(manifest_text(manifest))
    seal(measured_folder)
    page = render_report([open_bundle(measured_folder)])
    text = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    assert "Why not faster" in text
    assert "100 billion MACs a second in fp32 and 300 in int8, 1 thread," in text
    assert "20 GB a second, a copy on one thread, 80 where a cache holds it" in text
    assert re.search(r"int8-onnx onnxruntime 600 M 50% 6 of 40 40 MB 15 4 ms [\d.]+ ms \w+.* encoder.0, head", text)
    assert re.search(r"1\.\d+x \(.{9,11}\) 0\.8 % 1 % 900 B 50% 6 of 40 2", text)
