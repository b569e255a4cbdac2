"""Plots of the report: axes, latency distributions, accuracy against latency with its front, speed-ups, scenarios."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tsexport.bench.scenario_records import BatchPoint, Offline, Server, ServerRun
from tsexport.reports.plots import NARROW, WIDTH, at_both_widths, clipped, latency_axis, log_ticks, nice_ticks
from tsexport.reports.plots_latency import LatencySeries, latency_plot
from tsexport.reports.plots_scenarios import RIM, offline_plot, server_plot
from tsexport.reports.plots_speedup import SpeedupBar, speedup_plot
from tsexport.reports.plots_tradeoff import TradeoffPoint, pareto_front, tradeoff_plot

LATENCIES = st.floats(1e-4, 1e5)
POINTS = st.lists(
    st.builds(
        TradeoffPoint,
        st.text(max_size=60),
        LATENCIES,
        st.floats(-200, 1000),
        st.sampled_from(["selected", "eligible", "rejected", "reference"]),
        st.sampled_from(["a", "b"]),
    ),
    min_size=1,
    max_size=30,
)

MILLISECONDS = st.one_of(st.none(), st.floats(0, 1e6))
RATES = st.floats(1e-3, 1e7)
BATCHES = st.lists(
    st.builds(BatchPoint, st.integers(1, 4096), st.integers(1, 10**6), st.just(8.0), MILLISECONDS, MILLISECONDS, RATES),
    min_size=1,
    max_size=12,
)
RUNS = st.lists(
    st.builds(
        ServerRun, RATES, st.just(700), st.integers(1, 700), st.just(8.0), st.just(1.0), MILLISECONDS, MILLISECONDS,
        MILLISECONDS, st.integers(0, 700), st.booleans(), st.booleans(), st.booleans(),
    ),
    min_size=1,
    max_size=14,
)  # fmt: skip


def height_of(svg):
    return float(re.search(r'viewBox="0 0 \d+ (\d+)"', svg)[1])


def places_of(svg):
    """Every place that something is drawn at."""
    found = re.findall(r' x="([\d.e-]+)" y="([\d.e-]+)"| cx="([\d.e-]+)" cy="([\d.e-]+)"', svg)
    return [(float(a or c), float(b or d)) for a, b, c, d in found]


def assert_within(svg):
    places = places_of(svg)
    assert places
    assert all(0 <= x <= WIDTH and 0 <= y <= height_of(svg) for x, y in places), places
    assert "nan" not in svg


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 0.37, [0, 0.1, 0.2, 0.3]),
        (-3, 12, [0, 5, 10]),
        (0, 0, [0]),
        (0, 5e-324, [0]),
    ],
)
def test_ticks(start, end, expected):
    assert nice_ticks(start, end) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0.08, 4.3, [0.1, 0.2, 0.5, 1, 2]),
        (0.01, 100, [0.01, 0.1, 1, 10, 100]),
        (1e-3, 1e9, [1e-3, 1e-1, 1e1, 1e3, 1e5, 1e7, 1e9]),
    ],
)
def test_logarithmic_ticks(start, end, expected):
    assert log_ticks(start, end) == pytest.approx(expected)


@given(LATENCIES, st.floats(1, 1e6))
def test_an_axis_keeps_order_and_stays_within_its_pixels(smallest, times):
    axis = latency_axis(smallest, smallest * times, 10, 600)
    pixels = [axis(smallest * factor) for factor in np.geomspace(1, times, 9)]
    assert pixels == sorted(pixels)
    assert all(10 - 1e-6 <= pixel <= 600 + 1e-6 for pixel in (*pixels, axis(1e-9), axis(1e12)))
    assert all(axis.start <= tick * (1 + 1e-6) and tick * (1 - 1e-6) <= axis.end for tick in axis.ticks)


def test_a_label_is_shortened_in_its_middle():
    assert clipped("short", 10) == "short"
    assert clipped("patchtst-cpu-cpu4-int8", 12) == "patcht…-int8"


@pytest.mark.parametrize("count", [1, 5, 63, 700])
def test_latency_plot_of_any_number_of_samples(count):
    samples = tuple(np.linspace(1, 2, count).tolist())
    svg = latency_plot([LatencySeries("a <b> on c", samples, True)], "t")
    assert "a &lt;b&gt; on c" in svg
    assert ("p50 n/a" in svg) == (count < 10)
    assert ("p90 n/a" in svg) == (count < 64)
    assert ("p99 n/a" in svg) == (count < 662)
    assert f"{count} calls" in svg
    assert len(re.findall(r"M[\d.]+ \d+h0", svg)) == min(count, 120)
    assert_within(svg)


def test_latency_beyond_the_axis_is_counted():
    svg = latency_plot([LatencySeries("a", (1.0,) * 700 + (50.0, 60.0), False)], "t")
    assert "702 calls, 2 beyond" in svg


def test_latencies_far_apart_have_a_logarithmic_axis():
    near = latency_plot([LatencySeries("a", (1.0,) * 20, False), LatencySeries("b", (3.0,) * 20, False)], "t")
    far = latency_plot([LatencySeries("a", (0.01,) * 20, False), LatencySeries("b", (30.0,) * 20, False)], "t")
    assert "logarithmic" not in near
    assert "ms a call, logarithmic" in far


def test_the_front_is_what_nothing_else_is_better_than():
    names = {"fast": (1, 5), "both": (2, 1), "worse": (3, 2), "as slow": (2, 3), "accurate": (4, 0), "slower": (5, 0)}
    points = [TradeoffPoint(name, *at, "eligible") for name, at in names.items()]
    assert [point.label for point in pareto_front(points)] == ["fast", "both", "accurate"]


@given(POINTS)
def test_the_front_against_its_definition(points):
    def is_better(one, other):
        a, b = (one.latency_ms, one.error_percent), (other.latency_ms, other.error_percent)
        return all(x <= y for x, y in zip(a, b, strict=True)) and a != b

    expected = [point for point in points if not any(is_better(other, point) for other in points)]
    assert sorted(map(id, pareto_front(points))) == sorted(map(id, expected))


def test_tradeoff_plot_marks_the_front_of_each_group_and_what_is_far_off():
    points = [
        TradeoffPoint("far off", 1.0, 900.0, "rejected"),
        TradeoffPoint("better than the source", 2.0, -1.0, "eligible"),
        TradeoffPoint("same place", 2.0, -1.0, "selected"),
        TradeoffPoint("fp32", 4.0, 0.0, "reference"),
    ]
    svg = tradeoff_plot(points, 5.0, "budget: 5 % worse mse", "t")
    assert "far off (900 %)" in svg
    assert "budget: 5 % worse mse" in svg
    assert svg.count('class="front"') == 1
    assert re.findall(r'class="point (\w+) on-front"', svg).count("selected") == 1
    assert 'class="point reference"' in svg, "fp32 is slower and less accurate than another"
    labels = re.findall(r'class="label" x="([\d.]+)" y="([\d.]+)"', svg)
    assert len(set(labels)) == len(points)
    assert_within(svg)


def test_errors_far_below_the_budget_have_the_room():
    points = [TradeoffPoint("a", 1.0, 0.1, "selected"), TradeoffPoint("b", 2.0, 0.0, "reference")]
    svg = tradeoff_plot(points, 5.0, "budget", "t")
    assert "↑ budget" in svg
    assert 'class="budget"' not in svg
    assert_within(svg)


@given(POINTS, st.booleans())
@example(
    points=[TradeoffPoint("a", 1.0, 5e-324, "selected"), TradeoffPoint("b", 2.0, 0.0, "reference")],
    every_label=True,
)
def test_any_points_are_drawn_within_the_plot(points, every_label):
    svg = tradeoff_plot(points, 5.0, "budget", "t", every_label=every_label)
    assert_within(svg)
    assert svg.count("<g ") == len(points)


@given(
    st.lists(st.tuples(st.floats(0.01, 50), st.floats(0, 1), st.floats(1, 2), st.booleans()), min_size=1, max_size=20)
)
def test_speedups_of_any_size(ratios):
    bars = [
        SpeedupBar(f"<{i}>", "x", value, value * low if known else 0.0, value * high if known else None)
        for i, (value, low, high, known) in enumerate(ratios)
    ]
    svg = speedup_plot(bars, "t")
    assert_within(svg)
    assert "&lt;0&gt;" in svg
    assert svg.count('class="interval"') == sum(bar.high is not None for bar in bars)


def test_a_speedup_is_coloured_only_where_its_interval_says_so():
    bars = [SpeedupBar("a", "", 1.5, 1.4, 1.6), SpeedupBar("b", "", 1.1, 0.9, 1.2), SpeedupBar("c", "", 0.8, 0.7, 0.9)]
    assert re.findall(r'class="speedup (\w+)"', speedup_plot(bars, "t")) == ["faster", "even", "slower"]
    assert 'class="speedup even"' in speedup_plot([SpeedupBar("d", "", 3.0, 0.0, None)], "t")


def run(qps, *quantiles, valid=True):
    return ServerRun(qps, 700, 700, 8.0, 1.0, *quantiles, 0, False, valid, False)


@given(BATCHES)
def test_offline_stays_within(points):
    plot = offline_plot(Offline(tuple(points), points[0].batch, points[0].samples_per_s, 9, False), "title")
    assert_within(plot)
    assert plot.count("<circle") == len(points)


@given(RUNS, st.floats(1e-6, 1e5))
def test_server_stays_within(runs, bound):
    plot = server_plot(Server(bound, "as asked", 1, 0, tuple(runs), None), "title")
    assert_within(plot)
    marks = sum(ms is not None for one in runs for ms in (one.p50_ms, one.p90_ms, one.p99_ms))
    assert plot.count("<circle") == marks


def test_the_best_batch_is_marked_and_throughput_goes_up():
    points = tuple(BatchPoint(batch, 100, 8.0, 1.0, 1.5, rate) for batch, rate in ((1, 500), (8, 2000), (64, 1500)))
    plot = offline_plot(Offline(points, 8, 2000.0, 800, False), "title")
    assert re.findall(r'<g class="dot best">.*?<title>([^<]*)', plot) == [
        "batch 8: 2000/s, p90 of a call 1.5 ms, 100 calls"
    ]
    heights = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', plot)]
    assert heights[1] < heights[2] < heights[0]
    ticks = re.findall(r'<text class="label"[^>]*>(\d+)<', plot)
    assert ticks == ["1", "8", "64"]


def test_a_rate_that_is_too_high_is_drawn_at_the_rim():
    runs = (run(100.0, 0.5, 0.8, 3.0), run(200.0, 0.6, 900.0, 5000.0, valid=False))
    plot = server_plot(Server(10.0, "as asked", 1, 0, runs, 100.0), "title")
    assert plot.count("dot p50 valid") == plot.count("dot p50 invalid") == 1
    assert "200/s: p99 5000 ms, not valid" in plot
    heights = sorted(re.findall(r'cy="([\d.]+)"', plot), key=float)
    assert heights[0] == heights[1] != heights[2], f"its p90 and p99 are both beyond {RIM:g} times the bound"
    assert "p99 allowed: 10 ms" in plot


def test_names_of_lines_that_end_together_stand_apart():
    plot = server_plot(Server(10.0, "as asked", 1, 0, (run(10.0, 1.0, 1.0, 1.0), run(20.0, 1.0, 1.0, 1.0)), 20.0), "")
    levels = sorted(float(y) for y in re.findall(r'<text class="value" x="[\d.]+" y="([\d.]+)"', plot))
    assert len(levels) == 3
    assert min(b - a for a, b in itertools.pairwise(levels)) >= 12.9


def test_large_rates_are_in_thousands():
    points = tuple(BatchPoint(batch, 100, 8.0, 1.0, 1.5, 30_000.0 * batch) for batch in (1, 2))
    plot = offline_plot(Offline(points, 2, 60_000.0, 200, False), "")
    assert re.search(r">60<", plot)
    assert "thousand samples/s" in plot
    runs = (run(9_000.0, 1.0, 1.0, 1.0), run(18_000.0, 1.0, 1.0, 1.0))
    plot = server_plot(Server(10.0, "as asked", 1, 0, runs, 18_000.0), "")
    assert "thousand queries/s" in plot


def test_a_plot_at_both_widths_says_the_same():
    bars = (SpeedupBar("a <long> name of a bundle" * 4, "1.50x (1.40-1.60)", 1.5, 1.4, 1.6),)
    plots = at_both_widths(lambda width: speedup_plot(bars, "title", width))
    wide, narrow = (f"<svg{part}" for part in plots.split("<svg")[1:])
    assert f'class="plot" viewBox="0 0 {WIDTH} ' in wide
    assert f'class="plot narrow" viewBox="0 0 {NARROW} ' in narrow
    assert "<title>" in wide
    assert "title>" not in narrow
    for plot, width in ((wide, WIDTH), (narrow, NARROW)):
        assert all(x <= width for x, _ in places_of(plot))
        assert "1.50x (1.40-1.60)" in plot
        assert "a &lt;long" in plot
