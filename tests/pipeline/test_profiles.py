"""The profile that a build makes of its selected artifact."""

from tsexport.reports.profiles import read_profiles


def test_the_selected_artifact_has_a_profile(built):
    (path,) = (built.path / "measurements" / "profiles").iterdir()
    assert f"profiles/{path.name}" in (built.path / "measurements" / "SHA256SUMS").read_text()
    (file,) = read_profiles(built.bundle)
    record = file.record
    selected = built.bundle.manifest.selected
    assert (record.artifact, record.runtime, record.batch) == (selected.artifact, selected.runtime, 1)
    assert record.threads == built.bundle.selection.threads
    assert record.machine.machine_id == path.stem == built.measurements["machine"]["machine_id"]
    if record.reason:  # a model so small may take less than a tick of the profiler's clock, or be selected on tract
        assert f"no profile of {selected.artifact} on {selected.runtime}" in built.ran.stderr
    else:
        assert record.nodes_ms > 0
        assert "Where the time goes" in (built.path / "report.html").read_text()
