"""`tsexport build` as it is typed, in a folder of its own."""

import pytest
from click.testing import CliRunner

from tsexport import cli


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Run `tsexport build ARGUMENTS` in an empty folder, with an empty cache."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("TSEXPORT_CACHE", str(tmp_path / "cache"))

    def run(*arguments):
        return CliRunner().invoke(cli.main, ["build", *map(str, arguments)], prog_name="tsexport")

    return run
