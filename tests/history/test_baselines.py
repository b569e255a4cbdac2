"""Baselines and budgets: explicit commands alone write them."""

import pytest

from tsexport.bench.kept_records import BASELINE
from tsexport.bench.tables import latency_budgets, load_tables
from tsexport.errors import UsageError
from tsexport.measurements.history_baselines import set_baselines, write_budgets
from tsexport.measurements.history_series import read_history


def baseline_file(folder):
    return folder / "tiny-cpu4-int8" / "0123456789ab" / BASELINE


def test_reading_writes_nothing(month):
    before = sorted(month.rglob("*"))
    read_history(month)
    assert sorted(month.rglob("*")) == before
    assert not baseline_file(month).exists()


@pytest.mark.parametrize("which", ["latest", f"{29:040x}"])
def test_the_newest_recording_of_the_name_becomes_the_baseline(month, which):
    (done,) = set_baselines(month, which).done
    assert done.replaced is None
    assert done.baseline.commit == f"{29:040x}"
    (entry,) = done.baseline.entries
    assert entry.median_ms == pytest.approx(1.3, rel=0.02)
    assert entry.median_ms <= entry.p90_ms


def test_a_part_of_a_hash_and_a_files_name_will_do(keep, folder):
    first, _ = keep(1.0, day=0, commit="abcd1234" * 5), keep(2.0, day=1, commit="ffff0000" * 5)
    assert set_baselines(folder, "abcd").done[0].baseline.source == first.name
    assert set_baselines(folder, first.name).done[0].baseline.source == first.name
    assert set_baselines(folder, first.stem).done[0].baseline.source == first.name
    with pytest.raises(UsageError, match="there is no recording 'abc'"):
        set_baselines(folder, "abc")


def test_a_new_baseline_says_what_it_replaced(month):
    set_baselines(month, f"{5:040x}")
    (done,) = set_baselines(month, "latest").done
    assert done.replaced.commit == f"{5:040x}"


def test_only_the_places_that_have_the_recording_change(keep, folder):
    keep(machine="aaaaaaaaaaaa", commit="aaaa1111")
    keep(machine="bbbbbbbbbbbb", commit="bbbb1111")
    result = set_baselines(folder, "aaaa1111")
    assert [one.baseline.machine_id for one in result.done] == ["aaaaaaaaaaaa"]
    assert result.unchanged == (("tiny-cpu4-int8", "bbbbbbbbbbbb"),)
    assert [one.machine_id for one in read_history(folder).baselines] == ["aaaaaaaaaaaa"]
    assert set_baselines(folder, "latest", machine="bb").unchanged == ()


@pytest.mark.parametrize("which", ["", "nonsense", "abcdef"])
def test_a_recording_that_is_not_there_is_refused(month, which):
    with pytest.raises(UsageError, match="allowed are 'latest', a file's name, and a commit: 0000"):
        set_baselines(month, which)
    assert not baseline_file(month).exists()


def test_a_damaged_baseline_is_skipped_and_named(month):
    set_baselines(month, "latest")
    baseline_file(month).write_text("{}")
    found = read_history(month)
    assert found.baselines == ()
    assert found.skipped[0].path.endswith(BASELINE)
    set_baselines(month, "latest")
    path = baseline_file(month)
    path.write_text(path.read_text().replace('"median_ms": 1', '"median_ms": -1'))
    assert "is not above 0" in read_history(month).skipped[0].reason


def test_a_baseline_that_cannot_be_written_is_named(month):
    baseline_file(month).mkdir()
    with pytest.raises(UsageError, match=r"the baseline .*baseline.json cannot be written"):
        set_baselines(month, "latest")


# --- budgets ---------------------------------------------------------------------------------------------------------


def test_budgets_are_the_baselines_p90_with_the_margin(month, tmp_path):
    baseline = set_baselines(month, "latest").done[0].baseline
    written = write_budgets(month, tmp_path / "ours.toml", margin=0.2)
    assert (written.rows, written.left_out) == (1, ())
    (budget,) = latency_budgets("tiny", "linear", tables=load_tables(tmp_path / "ours.toml"))
    assert budget.max_ms == pytest.approx(1.2 * baseline.entries[0].p90_ms, rel=1e-5)
    assert (budget.device, budget.precision, budget.batch) == ("cpu", "fp32", 1)
    assert baseline.source in budget.source
    assert "fp32-onnx on onnxruntime, 2 threads, on 0123456789ab" in budget.note


def test_names_with_quotes_survive(keep, folder, tmp_path):
    keep(model='a "b" \\ c\n\u007f')
    set_baselines(folder, "latest")
    write_budgets(folder, tmp_path / "ours.toml")
    (row,) = load_tables(tmp_path / "ours.toml").latency
    assert row.model == 'a "b" \\ c\n\u007f'


def test_a_table_that_is_there_is_replaced_by_force_alone(month, tmp_path):
    set_baselines(month, "latest")
    path = tmp_path / "ours.toml"
    path.write_text("mine")
    with pytest.raises(UsageError, match=r"ours.toml is there already") as caught:
        write_budgets(month, path)
    assert "--force" in caught.value.next_step
    assert path.read_text() == "mine"
    write_budgets(month, path, force=True)
    assert load_tables(path).latency


def test_without_a_baseline_there_are_no_budgets(month, tmp_path):
    with pytest.raises(UsageError, match="has no baseline to make budgets from") as caught:
        write_budgets(month, tmp_path / "ours.toml")
    assert "--set-baseline latest" in caught.value.next_step


def test_a_budget_is_of_one_machine_one_model_and_a_p90(keep, folder, tmp_path):
    keep(machine="aaaaaaaaaaaa"), keep(machine="bbbbbbbbbbbb", samples=63)
    set_baselines(folder, "latest")
    with pytest.raises(UsageError, match="baselines of the machines aaaaaaaaaaaa, bbbbbbbbbbbb"):
        write_budgets(folder, tmp_path / "ours.toml")
    with pytest.raises(UsageError, match="no baseline holds a p90, which needs 64 samples: tiny-cpu4-int8"):
        write_budgets(folder, tmp_path / "ours.toml", machine="bb")
    keep(machine="aaaaaaaaaaaa", bundle="other")
    set_baselines(folder, "latest")
    with pytest.raises(UsageError, match="other and tiny-cpu4-int8 are both of tiny"):
        write_budgets(folder, tmp_path / "ours.toml", machine="aa")
    assert write_budgets(folder, tmp_path / "ours.toml", machine="aa", bundle="other").rows == 1


@pytest.mark.parametrize("margin", [-0.1, float("nan"), float("inf")])
def test_a_margin_that_is_not_allowed(month, tmp_path, margin):
    with pytest.raises(UsageError, match=r"allowed are fractions from 0 on, for example 0\.1 for 10 %"):
        write_budgets(month, tmp_path / "ours.toml", margin=margin)


def test_a_table_that_cannot_be_written_is_named(month, tmp_path):
    set_baselines(month, "latest")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file/ours.toml cannot be written"):
        write_budgets(month, tmp_path / "file" / "ours.toml")
