"""ci/gate.sh as it runs: in real git repositories, and with real bundles where two are compared."""

import shutil
import subprocess

import pytest

from tsexport.errors import UsageError
from tsexport.measurements.comparing import parse_threshold

LEAVE = 'mkdir -p "$TSEXPORT_OUT/bundle" && cp model.txt "$TSEXPORT_OUT/bundle/manifest.json"'
"""A build command that leaves a file where the bundle's manifest would be."""


def result_of(repository):
    return (repository.path / ".tsexport-gate" / "result").read_text().strip()


def comparing(code):
    """Return a command line that ends as compare does with this verdict, whatever its arguments."""
    return f"sh -c 'exit {code}' --"


@pytest.mark.parametrize(
    ("code", "ends", "word"),
    [
        (0, 0, "passed"), (4, 4, "regression"), (6, 0, "inconclusive"), (2, 0, "inconclusive"), (1, 1, "failed"),
        (130, 130, "failed"),
    ],
)  # fmt: skip
def test_each_exit_code_of_compare_has_its_result(changed, gate, code, ends, word):
    done = gate(changed, BUILD=LEAVE, COMPARE=comparing(code))
    assert done.returncode == ends, done.stderr
    assert result_of(changed) == word
    assert ("inconclusive" in done.stderr) == (word == "inconclusive")


def test_both_sides_are_built_by_the_same_command_in_their_own_trees(changed, gate):
    done = gate(changed, BUILD=LEAVE, COMPARE='sh -c \'cat "$1/manifest.json" "$2/manifest.json"; echo " $*"\' --')
    assert done.returncode == 0, done.stderr
    assert "basecandidate" in done.stdout.replace("\n", "")
    assert "--threshold 5% --junit" in done.stdout
    assert changed.git("status", "--porcelain") == ""  # results are ignored, the worktree is gone
    assert len(changed.git("worktree", "list").splitlines()) == 1


def test_changes_that_are_not_committed_belong_to_the_candidate(repository, gate):
    repository.commit(model_txt="base")
    (repository.path / "model.txt").write_text("working tree")
    done = gate(repository, BUILD=LEAVE, COMPARE='sh -c \'cat "$1/manifest.json" "$2/manifest.json"\' --')
    assert done.stdout.replace("\n", "").endswith("baseworking tree")


def test_the_base_is_where_the_branches_parted(changed, gate):
    parted = changed.git("merge-base", "HEAD", "main")
    changed.git("switch", "--quiet", "main")
    changed.commit(model_txt="main went on")
    changed.git("switch", "--quiet", "change")
    done = gate(changed, BUILD=LEAVE, COMPARE="true")
    assert f"against {parted}" in done.stdout


def test_on_the_branch_itself_the_commit_before_is_the_base(repository, gate):
    first = repository.commit(model_txt="1")
    repository.commit(model_txt="2")
    assert f"against {first}" in gate(repository, BUILD=LEAVE, COMPARE="true").stdout


def test_a_base_that_is_kept_is_not_built_again(changed, gate):
    log = changed.path.parent / "log"
    build = f'cat model.txt >>"{log}"; {LEAVE}'
    gate(changed, BUILD=build, COMPARE="true")
    gate(changed, BUILD=build, COMPARE="true")
    assert log.read_text() == "candidatebasecandidate"
    kept = [path.name for path in (changed.path / ".tsexport-gate").glob("base-*")]
    assert kept == [f"base-{changed.git('rev-parse', 'main')}"]
    changed.git("switch", "--quiet", "main")
    changed.commit(model_txt="main went on")
    changed.git("switch", "--quiet", "change")
    changed.git("rebase", "--quiet", "-X", "theirs", "main")
    gate(changed, BUILD=build, COMPARE="true")
    assert [path.name for path in (changed.path / ".tsexport-gate").glob("base-*")] != kept


def test_nothing_is_built_where_nothing_relevant_changed(changed, gate):
    done = gate(changed, BUILD="exit 9", PATHS="other src")
    assert done.returncode == 0
    assert result_of(changed) == "passed"
    assert "nothing that the bundle is made of differs" in done.stdout
    (changed.path / "src").mkdir()
    (changed.path / "src" / "new.py").write_text("")
    assert gate(changed, BUILD="exit 9", PATHS="other src").returncode == 9  # an untracked file is a change


# --- what is never red -----------------------------------------------------------------------------------------------


def test_without_git_nothing_can_be_said(tmp_path, repository, gate):
    shutil.rmtree(repository.path / ".git")
    done = gate(repository, BUILD=LEAVE, env_GIT_CEILING_DIRECTORIES=str(tmp_path))
    assert done.returncode == 0
    assert "no git repository with a commit" in done.stderr
    assert result_of(repository) == "inconclusive"


def test_without_a_base_nothing_can_be_said(changed, gate):
    done = gate(changed, BUILD=LEAVE, BASE="origin/absent")
    assert (done.returncode, result_of(changed)) == (0, "inconclusive")
    assert "no common history with origin/absent here" in done.stderr


def test_a_first_commit_has_nothing_before_it(repository, gate):
    repository.commit(model_txt="1")
    done = gate(repository, BUILD=LEAVE, COMPARE="true")
    assert (done.returncode, result_of(repository)) == (0, "inconclusive")
    assert "there is no commit before HEAD here" in done.stderr


def test_a_base_that_does_not_build_is_no_fault_of_the_change(changed, gate):
    done = gate(changed, BUILD=f"grep -q candidate model.txt && {LEAVE}")
    assert (done.returncode, result_of(changed)) == (0, "inconclusive")
    assert "does not build (exit code 1)" in done.stderr
    assert len(changed.git("worktree", "list").splitlines()) == 1


def test_inconclusive_may_have_a_code_of_its_own_and_warns_in_github(changed, gate):
    done = gate(changed, BUILD=LEAVE, BASE="absent", INCONCLUSIVE=6, env_GITHUB_ACTIONS="true")
    assert done.returncode == 6
    assert "::warning title=tsexport gate::inconclusive: no common history" in done.stdout
    assert "inconclusive: no common history" in (changed.path / ".tsexport-gate/summary.md").read_text()


# --- what is ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", ["5", "0%", "0.0", "100%", "5,0%", "five", "-5%"])
def test_a_threshold_that_compare_would_refuse_is_no_open_gate(changed, gate, threshold):
    done = gate(changed, BUILD=LEAVE, COMPARE=comparing(0), THRESHOLD=threshold)
    assert (done.returncode, result_of(changed)) == (2, "failed")
    assert f"the threshold is '{threshold}'; allowed are changes above 0 and below 100 %" in done.stderr
    with pytest.raises(UsageError, match="threshold is"):
        parse_threshold(threshold)


@pytest.mark.parametrize("threshold", ["5%", "5 %", "12.5%", ".5%", "0.05", ".05", "99%"])
def test_a_threshold_that_compare_takes_is_given_to_it(changed, gate, threshold):
    done = gate(changed, BUILD=LEAVE, COMPARE="sh -c 'echo \"$4\"' --", THRESHOLD=threshold)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, threshold.replace(" ", ""))
    assert 0 < parse_threshold(threshold) < 1


def test_a_candidate_that_does_not_build_fails_with_its_code(changed, gate):
    done = gate(changed, BUILD="exit 3")
    assert (done.returncode, result_of(changed)) == (3, "failed")
    assert "the candidate does not build (exit code 3)" in done.stderr


def test_a_build_command_that_leaves_no_bundle_is_told_where(changed, gate):
    done = gate(changed, BUILD="true")
    assert done.returncode == 2
    assert "the build command left no bundle in $TSEXPORT_OUT/bundle" in done.stderr


def test_without_a_build_command_it_says_what_is_missing(changed, gate):
    done = gate(changed)
    assert done.returncode != 0
    assert "TSEXPORT_GATE_BUILD is the command that builds a bundle" in done.stderr


# --- shallow clones --------------------------------------------------------------------------------------------------


def test_a_shallow_clone_gets_the_history_it_needs(changed, gate, tmp_path, repository):
    for number in range(3):
        changed.commit(model_txt=f"candidate {number}")
    base = changed.git("rev-parse", "main")
    clone = type(changed)(tmp_path / "clone")
    url = changed.path.as_uri()
    subprocess.run(["git", "clone", "-q", "--depth", "1", "--branch", "change", url, clone.path], check=True)
    done = gate(clone, BUILD=LEAVE, COMPARE="true", BASE="origin/main")
    assert done.returncode == 0, done.stderr
    assert f"against {base}" in done.stdout
    assert result_of(clone) == "passed"
    subprocess.run(["git", "clone", "-q", "--depth", "1", "--branch", "change", url, tmp_path / "again"], check=True)
    clone = type(changed)(tmp_path / "again")
    clone.git("remote", "set-url", "origin", str(tmp_path / "gone"))
    done = gate(clone, BUILD=LEAVE, COMPARE="true", BASE="origin/main")
    assert (done.returncode, result_of(clone)) == (0, "inconclusive")
    assert "a shallow clone needs fetch-depth: 0" in done.stderr


# --- for real --------------------------------------------------------------------------------------------------------

BUILD = (
    "tsexport build model.py:make --target cpu4-fp32 --formats onnx --batch 1 --seconds 0.2 --threads 1 "
    '--name bundle -o "$TSEXPORT_OUT"'
)


@pytest.mark.slow
def test_a_slower_model_is_a_regression(repository, gate, tiny_model, tmp_path):
    """Twelve layers of 512 in place of one of 16: hundreds of times the work, which no noise hides."""
    repository.commit(model_py=tiny_model(width=16, layers=1))
    repository.git("switch", "--quiet", "-c", "change")
    repository.commit(model_py=tiny_model(width=512, layers=12))
    slower = gate(
        repository, BUILD=BUILD, COMPARE="tsexport compare --max-seconds 90", env_TSEXPORT_CACHE=str(tmp_path / "cache")
    )
    assert slower.returncode == 4, slower.stderr
    assert result_of(repository) == "regression"
    out = repository.path / ".tsexport-gate"
    assert 'type="regression"' in (out / "junit.xml").read_text()
    assert "regression" in (out / "summary.md").read_text()
