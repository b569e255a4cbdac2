"""The fault suite: what it draws, and that it sees what a kill breaks; every change that two commands make, once."""

import json
import signal
from collections import Counter
from dataclasses import replace

import pytest

from tsexport.bench.suites import fault_cases
from tsexport.bench.suites.fault_cases import BUILDS, NAME, Case, Templates, cases
from tsexport.bench.suites.fault_records import Draw, Kill, Report, Undisturbed
from tsexport.bench.suites.fault_rounds import kill_once, make_place, undisturbed
from tsexport.bench.suites.fault_text import point_of, report_text
from tsexport.bench.suites.faults import Wanted, draw_all
from tsexport.codec import decode, encode

DRAW = Draw(0, "report", "empty", "change", "output", 0.0, "SIGKILL")
KILL = Kill(DRAW, True, "report.html", -9, 1.0, "old", 0, 0, 1, 0, 0, 1.0, 0, (), "0123abcd")


@pytest.fixture
def made(tmp_path, bundle_folder) -> Templates:
    """Templates around the small bundle of these tests; only what `report` and `sign` need is there."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    templates = Templates(tmp_path / "made")
    templates.bundle.parent.mkdir(parents=True)
    bundle_folder.rename(templates.bundle)
    key = Ed25519PrivateKey.generate()
    templates.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return templates


def case_of(made: Templates, name: str) -> Case:
    return next(replace(case, caches=("empty",)) for case in cases(made) if case.name == name)


def test_the_same_seed_draws_the_same_and_everything_is_drawn(made):
    wanted = Wanted(200, 50, 0)
    known = cases(made)
    drawn = draw_all(wanted, known)
    assert drawn == draw_all(wanted, known)
    assert drawn != draw_all(replace(wanted, seed=1), known)
    assert set(draw_all(Wanted(20, 20, 0), known)) < set(drawn), "a longer run begins with the same kills"
    assert len({one.name for one in drawn}) == 250
    assert Counter(one.case in BUILDS for one in drawn) == {True: 200, False: 50}
    assert {one.case for one in drawn} == {case.name for case in known}
    counted = Counter(value for one in drawn for value in (one.signal, one.cache, one.how, one.place))
    for value in ("SIGKILL", "SIGTERM", "SIGINT", "empty", "part", "full", "moment", "change", "output", "cache"):
        assert counted[value] >= 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sign", "sign --force", "report"])
def test_a_kill_before_any_of_a_commands_changes(made, tmp_path, name):
    """Not drawn but all of them, one after another."""
    case = case_of(made, name)
    whole = undisturbed(case, "empty", made, tmp_path / "round")
    changes = whole.output_changes
    assert changes >= 3
    states = set()
    for number in range(changes):
        one = replace(DRAW, case=name, share=(number + 0.5) / changes)
        kill = kill_once(case, one, whole, made, tmp_path / "round")
        assert kill.problems == (), kill
        assert kill.reached
        assert kill.code == -signal.SIGKILL
        states.add(kill.state)
    assert states == {"old", "new"}


@pytest.mark.slow
def test_what_is_broken_is_seen(made, tmp_path, monkeypatch):
    """A command that writes into what stands there: the suite says so."""
    case = case_of(made, "report")
    whole = undisturbed(case, "empty", made, tmp_path / "round")
    broken = replace(case, state_of=lambda out: "damaged", again=("verify", "{out}/nothing"))
    kill = kill_once(broken, replace(DRAW, share=0.5), whole, made, tmp_path / "round")
    assert any("neither the old nor the new" in problem for problem in kill.problems)
    assert any("the next one ended with 2" in problem for problem in kill.problems)


def test_states_of_a_bundle(made, tmp_path):
    case = case_of(made, "sign")
    place = make_place(tmp_path / "round", case, "empty", made)
    bundle = place.output / NAME
    assert case.state_of(place.output) == "old"
    (bundle / "SHA256SUMS.sig").write_bytes(b"1" * 64)
    assert case.state_of(place.output) == "new"
    (bundle / "SHA256SUMS.sig").write_bytes(b"1" * 63)
    assert case.state_of(place.output) == "damaged"
    (bundle / "SHA256SUMS.sig").unlink()
    (bundle / ".SHA256SUMS.sig.12.tmp").write_text("half")
    assert case.state_of(place.output) == "damaged"
    assert place.hidden() == [f"out/{NAME}/.SHA256SUMS.sig.12.tmp"]


def test_states_of_a_build(made, tmp_path):
    case = case_of(made, "build --force")
    place = make_place(tmp_path / "round", case, "empty", made)
    assert case.state_of(place.output) == "old"
    (place.output / NAME / "README.md").write_text("changed")
    assert case.state_of(place.output) == "damaged"
    assert not fault_cases.verifies(place.output / NAME)


def test_the_record_and_its_text(made):
    from tsexport.bench.fingerprint import fingerprint

    moments = replace(KILL, draw=replace(DRAW, how="moment", place="", case="build", cache="full"), after="parity")
    broken = replace(moments, state="damaged", next_code=1, problems=("what stands is neither",))
    done = replace(moments, reached=False, state="new")
    whole = (
        Undisturbed("report", "empty", 1.0, 3, 0, 0),
        Undisturbed("build", "full", 4.0, 100, 3, 5),
    )
    report = Report("faults", fingerprint(), "dlinear", "cpu4-int8", 0, whole, (KILL, moments, broken, done))
    assert decode(Report, encode(report), what="record") == report
    assert json.loads(encode(report))["schema_version"] == 1
    text = report_text(report)
    assert "4 kills, 3 as promised" in text
    assert "## Not as promised" in text
    assert "what stands is neither" in text
    assert point_of(moments) == "at a moment, after the step: parity"
    assert point_of(KILL) == "at a change in the output folder"
    assert point_of(done).startswith("after the end")
    assert "## Not as promised" not in report_text(replace(report, kills=(KILL,)))
