"""SHA256SUMS covers every file, and every change is named."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.checksums import check_files, check_sums, seal, seal_measurements
from tsexport.errors import BundleError


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "model"
    (root / "measurements").mkdir(parents=True)
    (root / "artifacts").mkdir()
    for name in ("manifest.json", "report.html", "measurements/host.json", "artifacts/m.onnx"):
        (root / name).write_text(name)
    seal(root)
    return root


def test_sha256sum_agrees(root):
    for folder in (root, root / "measurements"):
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    assert check_sums(root) == 4
    assert (root / "SHA256SUMS").read_text().split()[1::2] == ["artifacts/m.onnx", "manifest.json"]
    assert (root / "measurements/SHA256SUMS").read_text().split()[1::2] == ["host.json", "../report.html"]


def test_a_new_measurement_leaves_the_signed_list_as_it_is(root):
    before = (root / "SHA256SUMS").read_bytes()
    (root / "measurements/jetson.json").write_text("{}")
    (root / "report.html").write_text("new")
    with pytest.raises(BundleError, match=r"added: measurements/jetson.json; changed: report.html"):
        check_sums(root)
    seal_measurements(root)
    assert check_sums(root) == 5
    assert (root / "SHA256SUMS").read_bytes() == before


def spoil(root, what):
    path = root / "artifacts/m.onnx"
    if what == "changed":
        path.write_text("other")
    elif what == "missing":
        path.unlink()
    elif what == "added":
        (root / "artifacts/extra.py").write_text("x")
    elif what == "link":
        path.unlink()
        path.symlink_to(root / "manifest.json")
    elif what == "folder link":
        (root / "more").symlink_to(root / "artifacts")
    elif what == "pipe":
        os.mkfifo(root / "pipe")
    elif what == "listed outside":
        (root.parent / "secret").write_text("x")
        digest = hashlib.sha256(b"x").hexdigest()
        with (root / "SHA256SUMS").open("a") as file:
            file.write(f"{digest}  ../secret\n")
    elif what == "listed outside by measurements":
        (root / "measurements/SHA256SUMS").write_text(f"{'a' * 64}  ../manifest.json\n")
    elif what == "listed absolute":
        (root / "SHA256SUMS").write_text(f"{'a' * 64}  /etc/passwd\n")
    elif what == "malformed":
        (root / "SHA256SUMS").write_text("nonsense\n")
    elif what == "twice":
        text = (root / "SHA256SUMS").read_text()
        (root / "SHA256SUMS").write_text(text + text)
    elif what == "no list":
        (root / "SHA256SUMS").unlink()
    elif what == "no measurement list":
        (root / "measurements/SHA256SUMS").unlink()
    elif what == "list is a link":
        (root / "SHA256SUMS").rename(root.parent / "sums")
        (root / "SHA256SUMS").symlink_to(root.parent / "sums")
    elif what == "binary list":
        (root / "SHA256SUMS").write_bytes(b"\xff\xfe")
    elif what == "report in the signed list":
        with (root / "SHA256SUMS").open("a") as file:
            file.write(f"{'a' * 64}  report.html\n")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("changed", "changed: artifacts/m.onnx"),
        ("missing", "missing: artifacts/m.onnx"),
        ("added", "added: artifacts/extra.py"),
        ("link", "artifacts/m.onnx of the bundle model is a link"),
        ("folder link", "more of the bundle model is a link"),
        ("pipe", "pipe of the bundle model is no plain file"),
        ("listed outside", "'../secret' is not allowed"),
        ("listed outside by measurements", "'../manifest.json' is not allowed"),
        ("listed absolute", "'/etc/passwd' is not allowed"),
        ("malformed", "line 1 is not '<sha256>  <path>'"),
        ("twice", "line 3 is not"),
        ("no list", "SHA256SUMS is missing"),
        ("no measurement list", "measurements/SHA256SUMS is missing"),
        ("list is a link", "SHA256SUMS of the bundle model is a link"),
        ("binary list", "SHA256SUMS cannot be read"),
        ("report in the signed list", "belongs to measurements/SHA256SUMS"),
    ],
)
def test_what_is_found(root, what, message):
    spoil(root, what)
    with pytest.raises(BundleError) as caught:
        check_sums(root)
    assert message in str(caught.value)


def test_many_problems_are_cut_short(root):
    for number in range(9):
        (root / f"extra-{number}").write_text("x")
    with pytest.raises(BundleError, match=r"extra-4 and 4 more"):
        check_sums(root)


def test_only_named_files_are_checked(root):
    (root / "artifacts/m.onnx").write_text("other")
    check_files(root, ("manifest.json",))
    with pytest.raises(BundleError, match=r"artifacts/m\.onnx of the bundle model is not the file that was written"):
        check_files(root, ("artifacts/m.onnx",))
    with pytest.raises(BundleError, match="does not stand in SHA256SUMS"):
        check_files(root, ("report.html",))


@contextlib.contextmanager
def ordinary_user():
    """Run a block as a user who may not read everything; root may."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.fixture
def open_to_all(root):
    """The folder where every user may look into its parents, which pytest keeps to itself."""
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        yield Path(shutil.copytree(root, Path(parent) / "model"))


@pytest.mark.parametrize(
    ("closed", "message"),
    [
        ("manifest.json", "manifest.json of the bundle model cannot be read: Permission denied"),
        ("artifacts", "artifacts of the bundle model cannot be read: Permission denied"),
        (".", "SHA256SUMS cannot be read: .*Permission denied|the folder of the bundle model cannot be read"),
    ],
)
def test_what_may_not_be_read_is_named(open_to_all, closed, message):
    (open_to_all / closed).chmod(0)
    try:
        with ordinary_user():
            with pytest.raises(BundleError, match=message):
                check_sums(open_to_all)
            with pytest.raises(BundleError, match=r"cannot be read: .*Permission denied") as caught:
                check_files(open_to_all, ("manifest.json", "artifacts/m.onnx"))
            if closed != ".":
                assert "ls -l" in caught.value.next_step
            with pytest.raises(BundleError, match="Permission denied" if closed != "artifacts" else "JSON"):
                open_bundle(open_to_all)
    finally:
        (open_to_all / closed).chmod(0o755)


@pytest.mark.parametrize(("what", "message"), [("missing", "has no artifacts/m.onnx"), ("link", "is a link")])
def test_named_files_that_are_not_there(root, what, message):
    spoil(root, what)
    with pytest.raises(BundleError, match=message):
        check_files(root, ("artifacts/m.onnx",))


def test_a_name_that_no_list_can_hold(root):
    (root / "two\nlines").write_text("x")
    with pytest.raises(BundleError, match="is not allowed"):
        seal(root)
