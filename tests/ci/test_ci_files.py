"""action.yml, the GitLab template and this repository's workflow: what they declare is used, and every shell step runs.

Steps run for real, in a git repository, with the expressions of the runner replaced; third parties' actions (`uses`)
are not run here, only named.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
GITLAB = yaml.safe_load((ROOT / "ci/gitlab/tsexport-gate.yml").read_text())
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
STEPS = ACTION["runs"]["steps"]
EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}")
LEAVE = 'mkdir -p "$TSEXPORT_OUT/bundle" && cp model.txt "$TSEXPORT_OUT/bundle/manifest.json"'
KNOWN_ACTIONS = {"actions/checkout", "actions/setup-python", "actions/cache", "actions/upload-artifact"}


def texts(value):
    """Yield every string within parsed YAML."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def filled(text, values):
    """Return a text with its expressions replaced, as GitHub does before a step runs."""
    return EXPRESSION.sub(lambda match: values[match[1]], text)


def run_action(repository, base_ref="main", compare="", **inputs):
    """Run the shell steps of action.yml as the runner does; return (the last step's result, outputs, summary)."""
    given = {name: declared["default"] for name, declared in ACTION["inputs"].items()}
    given |= {name.replace("_", "-"): value for name, value in inputs.items()}
    values = {f"inputs.{name}": value for name, value in given.items()}
    values |= {"github.action_path": str(ROOT), "github.base_ref": base_ref, "runner.os": "Linux"}
    runner = repository.path.parent / "runner"
    runner.mkdir(exist_ok=True)
    result, outputs = None, {}
    for step in STEPS:
        condition = step.get("if", "")
        if "run" not in step or (condition.startswith("inputs.") and not holds(condition, values)):
            continue
        output = runner / f"output-{step.get('id', 'none')}"
        output.write_text("")
        environment = {key: filled(str(text), values) for key, text in step["env"].items()}
        environment |= {
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(runner / "summary"),
            "GITHUB_ACTIONS": "true",
        }
        if compare:
            environment["TSEXPORT_GATE_COMPARE"] = compare
        result = repository.run("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"], **environment)
        lines = [line.partition("=") for line in output.read_text().splitlines()]
        outputs |= {name: value for name, _, value in lines}
        values |= {f"steps.{step.get('id')}.outputs.{name}": value for name, _, value in lines}
        if result.returncode:
            break
    summary = runner / "summary"
    return result, outputs, summary.read_text() if summary.exists() else ""


def holds(condition, values):
    name, operator, literal = re.fullmatch(r"(\S+) (==|!=) '(.*)'", condition).groups()
    return (values[name] == literal) == (operator == "==")


# --- what is declared ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTION["inputs"])
def test_an_input_is_described_has_a_default_and_is_used(name):
    declared = ACTION["inputs"][name]
    assert len(declared["description"]) > 20
    assert isinstance(declared["default"], str)
    assert any(f"inputs.{name}" in re.split(r"[^\w.-]", text) for text in texts(ACTION["runs"]))


def test_every_expression_names_something_that_is_declared():
    used = {m for text in texts(ACTION) for m in re.findall(r"(?:inputs|steps)\.[\w.-]+", text)}
    outputs = {name for step in STEPS for name in re.findall(r'echo "(\w+)=', step.get("run", ""))}
    for name in used:
        kind, *rest = name.split(".")
        if kind == "inputs":
            assert rest[0] in ACTION["inputs"], name
        else:
            assert rest[0] in {step.get("id") for step in STEPS}, name
            assert rest[2] in outputs, name
    assert all(declared["description"] for declared in ACTION["outputs"].values())


def test_no_expression_stands_in_a_script():
    """What a pull request's author can write (a branch's name, say) would run as shell."""
    for step in STEPS:
        assert not EXPRESSION.search(step.get("run", "")), step["name"]
    for job in WORKFLOW["jobs"].values():
        assert not any(EXPRESSION.search(step.get("run", "")) for step in job["steps"])


def test_foreign_actions_are_few_and_have_a_version():
    steps = [*STEPS, *(step for job in WORKFLOW["jobs"].values() for step in job["steps"])]
    for step in steps:
        if step.get("uses", "./") != "./":
            name, _, version = step["uses"].partition("@")
            assert name in KNOWN_ACTIONS
            assert re.fullmatch(r"v\d+", version)
        if "run" in step and step in STEPS:
            assert step["shell"] == "bash"


def test_every_variable_of_the_template_is_described_and_used():
    text = (ROOT / "ci/gitlab/tsexport-gate.yml").read_text()
    job = "\n".join(texts({**GITLAB["tsexport-gate"]}))
    for name in GITLAB["variables"]:
        assert re.search(rf"  # .+\n  {name}:", text), f"{name} has no comment above it"
        assert f"${name}" in job or f"${{{name}" in job or f"\\${name}" in job, name


def test_the_template_holds_the_script_as_it_is():
    (script,) = GITLAB["tsexport-gate"]["script"]
    begin, _, rest = script.partition("<<'TSEXPORT_GATE_SH'\n")
    held, end, _ = rest.partition("TSEXPORT_GATE_SH\nbash .tsexport-gate/gate.sh")
    assert begin
    assert end
    assert held == (ROOT / "ci/gate.sh").read_text(), (
        "copy ci/gate.sh into ci/gitlab/tsexport-gate.yml, indented by six"
    )


def test_inconclusive_is_a_warning_and_results_are_kept():
    job = GITLAB["tsexport-gate"]
    assert job["allow_failure"] == {"exit_codes": [6]}
    assert job["artifacts"]["when"] == "always"
    assert job["artifacts"]["reports"] == {"junit": ".tsexport-gate/junit.xml"}
    upload = STEPS[-1]
    assert upload["if"].startswith("always()")
    assert ".tsexport-gate/junit.xml" in upload["with"]["path"]


@pytest.mark.parametrize("path", ["ci/gate.sh", ".ci/run", ".ci/gate", ".ci/build_bundle"])
def test_scripts_can_be_executed_and_parsed(path):
    assert os.access(ROOT / path, os.X_OK)
    assert subprocess.run(["bash", "-n", ROOT / path], capture_output=True).returncode == 0


# --- the action's steps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "ends", "word"), [(0, 0, "passed"), (4, 4, "regression"), (6, 0, "inconclusive")])
def test_the_action_runs_to_its_result(changed, code, ends, word):
    done, outputs, _ = run_action(
        changed, build_command=LEAVE, install="", base="main", compare=f"sh -c 'exit {code}' --"
    )
    assert done.returncode == ends, done.stderr
    assert outputs["result"] == word
    assert outputs["summary"] == str(changed.path / ".tsexport-gate" / "summary.md")
    assert re.fullmatch("[0-9a-f]{12}", outputs["cpu"])
    assert ("::warning" in done.stdout) == (word == "inconclusive")


def test_by_default_the_base_is_the_target_branch_or_the_commit_before(changed, tmp_path):
    changed.git("remote", "add", "origin", str(changed.path))
    changed.git("update-ref", "refs/remotes/origin/main", "main")
    base = changed.git("rev-parse", "main")
    changed.commit(model_txt="more")
    done, _, _ = run_action(changed, build_command=LEAVE, install="", compare="true")
    assert f"against {base}" in done.stdout
    done, _, _ = run_action(changed, base_ref="", build_command=LEAVE, install="", compare="true")
    assert f"against {changed.git('rev-parse', 'HEAD~1')}" in done.stdout


@pytest.mark.slow
def test_a_model_becomes_a_build_and_the_same_model_is_not_red(repository, tiny_model, tmp_path):
    (repository.path / "my models").mkdir()
    (repository.path / "my models" / "a.py").write_text(tiny_model(width=16, layers=1))
    repository.commit()
    repository.git("switch", "--quiet", "-c", "change")
    (repository.path / "my models" / "a.py").write_text(tiny_model(width=16, layers=1) + "# the same\n")
    repository.commit()
    done, outputs, summary = run_action(
        repository,
        model="my models/a.py:make",
        target="cpu4-fp32",
        build_args="--formats onnx --batch 1 --seconds 0.2 --threads 1",
        install="",
        base="main",
        compare="tsexport compare --max-seconds 60",
    )
    assert done.returncode == 0, done.stderr
    assert outputs["result"] in ("passed", "inconclusive")
    assert Path(outputs["junit"]).exists()
    assert summary == Path(outputs["summary"]).read_text() + "\n"


def test_without_a_model_the_action_says_what_to_give(changed):
    done, _, _ = run_action(changed, install="")
    assert done.returncode == 2
    assert "::error title=tsexport gate::give the input model or build-command" in done.stdout


def test_the_installation_step_hands_its_arguments_to_pip(changed, tmp_path):
    (step,) = [step for step in STEPS if step["name"] == "Install tsexport"]
    done = changed.run("bash", "-eo", "pipefail", "-c", step["run"], INSTALL="--no-input --help")
    assert "pip install [options]" in done.stdout, done.stderr


# --- the template's ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "ends"), [(0, 0), (4, 4), (6, 6)])
def test_the_templates_script_runs(changed, code, ends):
    changed.git("remote", "add", "origin", str(changed.path))
    job = GITLAB["tsexport-gate"]
    variables = {**GITLAB["variables"], "TSEXPORT_BUILD_COMMAND": LEAVE, "TSEXPORT_INSTALL": ""}
    variables |= {"CI_MERGE_REQUEST_TARGET_BRANCH_NAME": "main", "TSEXPORT_GATE_COMPARE": f"sh -c 'exit {code}' --"}
    script = "\n".join([*job["before_script"], *job["script"]])
    done = changed.run("bash", "-eo", "pipefail", "-c", script, **variables)
    assert done.returncode == ends, done.stderr


def test_the_template_without_a_model_says_what_to_set(changed):
    variables = {**GITLAB["variables"], "TSEXPORT_INSTALL": ""}
    done = changed.run("bash", "-eo", "pipefail", "-c", GITLAB["tsexport-gate"]["script"][0], **variables)
    assert done.returncode == 2
    assert "set the variable TSEXPORT_MODEL or TSEXPORT_BUILD_COMMAND" in done.stderr


# --- this repository's own --------------------------------------------------------------------------------------------


@pytest.fixture
def own(changed):
    """This project's scripts within a repository that is not it."""
    for path in (".ci/gate", "ci/gate.sh"):
        (changed.path / path).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / path, changed.path / path)
    changed.commit(model_txt="more")
    return changed


@pytest.mark.parametrize(
    ("code", "ends", "said"),
    [
        (0, 0, ""), (6, 0, "inconclusive: compare could not decide"), (4, 4, "a confirmed regression"),
        (1, 0, "ended with 1, which is no regression; not judged"),
    ],
)  # fmt: skip
def test_only_a_confirmed_regression_is_red_here(own, code, ends, said):
    done = own.run(
        ".ci/gate", TSEXPORT_GATE_BUILD=LEAVE, TSEXPORT_GATE_COMPARE=f"sh -c 'exit {code}' --",
        TSEXPORT_GATE_PATHS="model.txt",
    )  # fmt: skip
    assert done.returncode == ends, done.stderr
    assert said in done.stderr


def test_a_gate_that_takes_too_long_is_not_red_here(own):
    done = own.run(
        ".ci/gate", TSEXPORT_GATE_BUILD="sleep 60", TSEXPORT_GATE_PATHS="model.txt", TSEXPORT_GATE_SECONDS="1"
    )
    assert done.returncode == 0
    assert "not finished in 1 s on this machine; not judged" in done.stderr


def test_ci_runs_the_gate_after_the_tests():
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert lines[-4:] == ["make lint", "make types", "make test", ".ci/gate"]
    uses = [step for step in WORKFLOW["jobs"]["gate"]["steps"] if step.get("uses") == "./"]
    assert set(uses[0]["with"]) <= set(ACTION["inputs"])
    paths = set(uses[0]["with"]["paths"].split())
    assert all((ROOT / path).exists() for path in paths)
    assert f"{uses[0]['with']['paths']}" in (ROOT / ".ci/gate").read_text()


@pytest.mark.slow
def test_this_trees_code_builds_the_bundle_that_is_gated(tmp_path):
    """`.ci/build_bundle` in a worktree-like copy: the copy's code builds, not the installed one."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for folder in ("src", "exporters", "quantize", "runtimes", "models", "calibration", "bench"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__", "results", "suites"))
    init = tree / "src/tsexport/__init__.py"
    init.write_text(init.read_text().replace('__version__ = "', '__version__ = "9.'))
    out = tmp_path / "out"
    out.mkdir()
    done = subprocess.run(
        [ROOT / ".ci/build_bundle"],
        cwd=tree,
        env={**os.environ, "TSEXPORT_OUT": str(out)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["bundle"]
    assert "9.0.1.0" in (out / "bundle/manifest.json").read_text() + (out / "bundle/README.md").read_text()


def test_the_page_on_ci_shows_inputs_and_variables_that_there_are():
    text = (ROOT / "docs/ci.md").read_text()
    github, gitlab = (
        yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    )
    assert set(github[1]["with"]) <= set(ACTION["inputs"])
    assert set(gitlab["variables"]) <= set(GITLAB["variables"])
    assert "ci/gitlab/tsexport-gate.yml" in gitlab["include"][0]["remote"]
