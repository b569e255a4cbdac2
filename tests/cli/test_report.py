"""tsexport report: one page for one bundle or several."""

import json
import shutil

from click.testing import CliRunner

from tsexport.cli.report import report
from tsexport.errors import UsageError


def run(*arguments):
    return CliRunner().invoke(report, [str(argument) for argument in arguments])


def test_writes_the_page(measured_folder, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "b"), "gztar", measured_folder.parent, measured_folder.name)
    result = run(measured_folder, archive, "-o", tmp_path / "report.html")
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"wrote {tmp_path}/report.html (")
    assert (tmp_path / "report.html").read_text().count("<article ") == 2


def test_json(measured_folder, tmp_path):
    result = run(measured_folder, "-o", tmp_path / "report.html", "--json")
    assert json.loads(result.stdout) == {
        "schema_version": 1,
        "path": str(tmp_path / "report.html"),
        "bundles": [str(measured_folder)],
    }


def test_an_old_page_stays_where_a_bundle_is_damaged(measured_folder, tmp_path):
    (tmp_path / "report.html").write_text("old")
    (measured_folder / "manifest.json").write_text("{}")
    result = run(measured_folder, "-o", tmp_path / "report.html")
    assert isinstance(result.exception, UsageError)
    assert (tmp_path / "report.html").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["report.html"]


def test_wrong_usage(measured_folder):
    assert run().exit_code == 2
    assert run(measured_folder).exit_code == 2
    assert "-o" in run("-h").output
