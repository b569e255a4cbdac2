import pytest

from tsexport.bench.tables import load_tables
from tsexport.bench.use_cases import answer_use_cases, use_case_rows, use_case_titles

LEVELS = load_tables().service_level


def statuses(answers):
    return [(answer.use_case, answer.status) for answer in answers]


@pytest.mark.parametrize(
    ("ms", "expected"),
    [
        (10.0, ("met", "met", "met")),
        (10.01, ("missed", "met", "met")),
        (50.01, ("missed", "missed", "met")),
        (1000.01, ("missed", "missed", "missed")),
    ],
)
def test_the_published_use_cases_are_answered_by_the_p90(measurement, ms, expected):
    answers = answer_use_cases(LEVELS, [measurement(ms)])
    assert statuses(answers) == list(zip(("real-time", "near-real-time", "batch"), expected, strict=True))
    assert all(answer.p90_ms == ms and answer.samples == 100 for answer in answers)
    assert [answer.note for answer in answers] == ["1-minute bars", "5-minute bars", "end of day"]
    assert {answer.source for answer in answers} == {"Model Infrastructure Requirements Guide"}


def test_spikes_that_the_median_hides_decide(measurement):
    spiky = measurement(samples_ms=(1.0,) * 80 + (200.0,) * 20)
    assert statuses(answer_use_cases(LEVELS, [spiky]))[0] == ("real-time", "missed")


def test_too_few_samples_are_no_answer(measurement):
    few, enough = (answer_use_cases(LEVELS, [measurement(1.0, samples=count)]) for count in (63, 64))
    assert {answer.status for answer in few} == {"inconclusive"}
    assert few[0].p90_ms is None
    assert few[0].reason == "63 samples; the p90 needs 64"
    assert {answer.status for answer in enough} == {"met"}


def test_rows_are_one_for_each_artifact_and_batch(measurement):
    answers = answer_use_cases(LEVELS, [measurement(20.0), measurement(60.0, batch=32), measurement(1.0, samples=9)])
    assert use_case_titles(answers) == ("real-time (10 ms)", "near-real-time (50 ms)", "batch (1000 ms)")
    first, second = use_case_rows(answers[:6])
    assert first == ("model-fp32", "onnxruntime", "1", "20 ms", "100", "no", "yes", "yes")
    assert second == ("model-fp32", "onnxruntime", "32", "60 ms", "100", "no", "no", "yes")
    assert use_case_rows(answers[6:])[0][3:] == ("n/a", "9", "inconclusive", "inconclusive", "inconclusive")


def test_without_use_cases_there_is_no_answer(measurement):
    assert answer_use_cases((), [measurement()]) == ()
    assert use_case_titles(()) == ()
