"""Every command and every Python block of the README runs as it stands there.

A comment above a block says how: nothing runs it here; `slow` runs it in the slow set, in the order of the page, in one
folder; `file: NAME` writes it there; `not run: REASON` leaves it out.  What a reader would bring (weights, series,
arrays, an ONNX file) are small stand-ins of those names, made below.
"""

import csv
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tsexport import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"(?:^<!--(?P<note>[^>]*)-->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LANGUAGES = {"sh", "python", "toml", "text"}
# Measuring is shortened to a moment: what is shown here is that the commands work.
PRELUDE = """
set -euo pipefail
tsexport() {
  case "$*" in
    *"--scenario memory"*|*--profile*) command tsexport "$@"; return;;  # as long as their calls are many
  esac
  case "$1" in
    %s) command tsexport "$@" --seconds 0.2;;
    *) command tsexport "$@";;
  esac
}
"""


@dataclass(frozen=True)
class Block:
    """A fenced block: the language, the text, and the comment above it."""

    language: str
    text: str
    note: str
    line: int

    @property
    def runs(self) -> bool:
        return self.language in ("sh", "python") and self.note in ("", "slow")


BLOCKS = [
    Block(m["language"], m["text"], (m["note"] or "").strip(), README[: m.start()].count("\n") + 1)
    for m in BLOCK.finditer(README)
]


def each(blocks):
    return pytest.mark.parametrize("block", blocks, ids=lambda block: f"line {block.line}")


def run_block(block, folder):
    if block.language == "python":
        command = [sys.executable, "-c", block.text]
    else:
        measuring = "|".join(
            name
            for name in ("build", "bench")
            if any("--seconds" in parameter.opts for parameter in cli.main.get_command(None, name).params)
        )
        command = ["bash", "-c", PRELUDE % measuring + block.text]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "TSEXPORT_CACHE": str(folder / ".cache")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def write_stand_ins(folder, onnx_file):
    """Write what the README's reader would bring, and the files that it shows."""
    import torch

    from tsexport.models import dlinear

    for block in BLOCKS:
        if block.note.startswith("file: "):
            (folder / block.note.removeprefix("file: ")).write_text(block.text)
    generator = np.random.default_rng(3)
    rows = 100 + np.cumsum(generator.standard_normal((3000, 3)), axis=0)
    with (folder / "prices.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["time", "open", "close", "volume"])
        writer.writerows([index, *row] for index, row in enumerate(rows.tolist()))
    torch.manual_seed(0)
    config = dlinear.Config(context_length=96, horizon=24, channels=3)
    torch.save({"state_dict": dlinear.build(config).state_dict()}, folder / "weights.pth")
    source = {}
    exec((folder / "mymodels.py").read_text(), source)
    module = source["classifier"](width=64)
    torch.save(module.state_dict(), folder / "classifier.pt")
    bars = generator.standard_normal((600, 60, 5)).astype(np.float32)
    with torch.no_grad():
        target = module(torch.from_numpy(bars)).argmax(1).numpy()
    np.savez(folder / "bars.npz", bars=bars[:300])
    np.savez(folder / "labelled.npz", bars=bars[300:], target=target[300:])
    (folder / "model.onnx").write_bytes(onnx_file.read_bytes())


@pytest.fixture(scope="module")
def reader(tmp_path_factory, model_files):
    """The folder of someone who follows the README from top to bottom."""
    folder = tmp_path_factory.mktemp("reader")
    write_stand_ins(folder, model_files.fp32)
    return folder


def test_every_block_is_understood():
    assert README.count("\n```") == 2 * len(BLOCKS)
    assert {block.language for block in BLOCKS} <= LANGUAGES
    for block in BLOCKS:
        known = block.note in ("", "slow") or block.note.startswith(("file: ", "not run: ", "FIGURES: "))
        assert known, f"line {block.line}: {block.note}"
    assert len([block for block in BLOCKS if block.runs]) > 8


@each([block for block in BLOCKS if block.runs and not block.note])
def test_quick_blocks_run(block, reader):
    done = run_block(block, reader)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@each([block for block in BLOCKS if block.runs and block.note == "slow"])
def test_slow_blocks_run_one_after_the_other(block, reader):
    done = run_block(block, reader)
    assert done.returncode == 0, done.stdout + done.stderr


def run_make(*arguments):
    # Not as a part of the `make test` that may run this.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_make_knows_what_the_readme_asks_of_it():
    wanted = set(re.findall(r"(?:`|^)make ([a-z0-9-]+)", README, re.MULTILINE))
    assert {"demo", "test", "bench"} <= wanted
    done = run_make("--dry-run", *sorted(wanted))
    assert done.returncode == 0, done.stderr
    assert "tsexport build patchtst-cpu --target cpu4-int8 -o dist" in done.stdout
    assert "pytest" in done.stdout


def test_make_runs_every_benchmark_with_the_arguments_it_is_given():
    targets = re.findall(r"^(bench[a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"bench-compare", "bench-estimate", "bench-faults"} <= set(targets)
    done = run_make("--dry-run", *targets, "BENCH_ARGS=--resume --minutes 1")
    assert done.returncode == 0, done.stderr
    commands = [line for line in done.stdout.splitlines() if "bench/suites/" in line]
    assert len(commands) == len(targets)
    for command in commands:
        (script,) = re.findall(r"bench/suites/\w+\.py", command)
        assert (ROOT / script).is_file()
        assert command.endswith(" --resume --minutes 1")


def test_make_takes_another_index():
    done = run_make("--dry-run", "--always-make", "demo", "PIP_ARGS=--extra-index-url https://example.org/cpu")
    assert re.search(r"pip install .*--extra-index-url https://example.org/cpu", done.stdout)


def test_links_within_the_repository_lead_somewhere():
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text()):
            assert (ROOT / link).exists(), f"{page} links to {link}"


def test_every_file_that_contributing_names_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = {path for path in re.findall(r"`([\w.-]+/[\w./-]*)`", text) if not path.startswith("../")}
    assert len(named) > 30
    for path in sorted(named):
        assert (ROOT / path).exists() or "NAME" in path, path


def test_every_table_that_contributing_names_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"(`_?[A-Z_]+`(?: and `[A-Z_]+`)*) in `([\w./-]+\.py)`", text)
    assert len(rows) > 8
    for names, path in rows:
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^{name}\b", (ROOT / path).read_text(), re.MULTILINE), f"{path} has no {name}"


def test_every_command_and_exit_code_is_explained():
    for name in cli.COMMANDS:
        assert f"tsexport {name}" in README
    rows = set(re.findall(r"^\| (\d+) \|", README, re.MULTILINE))
    assert rows == {
        str(code) for code in (0, cli.EXIT_BUG, cli.EXIT_USAGE, 3, 4, 5, 6, cli.EXIT_INTERRUPTED, cli.EXIT_TERMINATED)
    }
