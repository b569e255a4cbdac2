import json
import re

import pytest

from tsexport.bench.kept_records import check_commit, kept_name, read_kept
from tsexport.errors import BundleError, UsageError


def test_a_record_lies_by_bundle_and_machine_and_survives_its_file(keep, folder):
    path = keep(day=3, commit="abcdef0123456789")
    assert path.parent == folder / "tiny-cpu4-int8" / "0123456789ab"
    assert re.fullmatch(r"20260108T120000Z-abcdef012345-[0-9a-f]{8}\.json", path.name)
    kept = read_kept(path)
    assert kept_name(kept) == path.name
    assert json.loads(path.read_text())["schema_version"] == 1
    assert [one.name for one in path.parent.iterdir()] == [path.name]  # nothing temporary is left


def test_nothing_is_overwritten(keep):
    first = keep(1.0, commit="same")
    before = first.read_bytes()
    second = keep(2.0, commit="same")
    assert second != first
    assert first.read_bytes() == before
    assert keep(1.0, commit="same") == first  # equal content is one file


def test_names_sort_by_time_and_may_lack_a_commit(keep):
    later, earlier = keep(day=40, commit="a"), keep(day=2, commit="z")
    assert earlier.name < later.name
    assert "-no-commit-" in keep(commit="").name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema_version=9), "has schema_version 9; this version of tsexport reads 1"),
        (lambda d: d.update(comit="a"), r"unknown key 'comit' \(did you mean 'commit'\?\)"),
        (lambda d: d.pop("record"), "missing 'record'"),
        (lambda d: d.update(modified="no"), "modified: is .no., needed is true or false"),
    ],
)
def test_another_file_is_refused(keep, change, message):
    path = keep()
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match=message) as caught:
        read_kept(path)
    assert "tsexport bench --record" in caught.value.next_step


@pytest.mark.parametrize("commit", ["", "a/b", "..", "-x", "a b", "x" * 65, "\x00"])
def test_a_commit_that_cannot_be_a_name_is_refused(commit):
    with pytest.raises(UsageError, match="allowed are 1 to 64 letters, digits"):
        check_commit(commit)


@pytest.mark.parametrize("commit", ["a", "v1.2.3", "0123456789abcdef" * 4, "main_2"])
def test_other_commits_are_allowed(commit):
    assert check_commit(commit) == commit


def test_a_folder_that_cannot_be_written_is_named(keep, folder):
    folder.write_text("a file")
    with pytest.raises(UsageError, match=r"the result cannot be kept in .*kept"):
        keep()
