"""Archives: good ones open, and nothing gets out of the folder or fills the disk."""

import contextlib
import gzip
import io
import os
import shutil
import tarfile
import tempfile
import warnings
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tsexport
from tsexport.bundles.archives import Limits, unpack
from tsexport.bundles.bundle import open_bundle
from tsexport.errors import BundleError, TsexportError, UsageError

SMALL = Limits(members=20, total_bytes=2**20, ratio=10, free_bytes=2**18, header_bytes=2**16)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary folders go, to see that none is left."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def pack(folder, kind, nested):
    base = folder.parent if nested else folder
    name = shutil.make_archive(
        str(folder.parent / f"packed-{nested}"), {".tar": "tar", ".tar.gz": "gztar", ".zip": "zip"}[kind],
        root_dir=base, base_dir=folder.name if nested else ".",
    )  # fmt: skip
    return Path(name)


@pytest.mark.parametrize("kind", [".tar", ".tar.gz", ".zip"])
@pytest.mark.parametrize("nested", [True, False])
def test_opens_and_cleans_up(bundle_folder, temporary, kind, nested):
    archive = pack(bundle_folder, kind, nested)
    with open_bundle(archive) as bundle:
        assert bundle.manifest.name == "tiny-cpu4-int8"
        assert (
            bundle.artifact("fp32-onnx").path.read_bytes() == (bundle_folder / "artifacts/tiny-fp32.onnx").read_bytes()
        )
        assert bundle.path.is_relative_to(temporary)
        assert bundle.name == f"packed-{nested}"
    assert not any(temporary.iterdir())


def test_cleans_up_when_the_object_is_gone(bundle_folder, temporary):
    bundle = open_bundle(pack(bundle_folder, ".tar", True))
    assert any(temporary.iterdir())
    del bundle
    assert not any(temporary.iterdir())


def tar_of(path, *members):
    """Write a tar of (name, content, changes of the header)."""
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for name, content, change in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in change.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("name", "content", "change", "message"),
    [
        ("/etc/x", b"x", {}, "named '/etc/x'"),
        ("a/../../x", b"x", {}, "relative, plain and within the bundle"),
        ("a\\..\\x", b"x", {}, "relative, plain"),
        ("c:x", b"x", {}, "relative, plain"),
        ("a\nb", b"x", {}, "relative, plain"),
        ("x/" * 40 + "x", b"x", {}, "too long"),
        ("x", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "a link to '/etc/passwd'"),
        ("x", b"", {"type": tarfile.LNKTYPE, "linkname": "../y"}, "a link to '../y'"),
        ("x", b"", {"type": tarfile.CHRTYPE}, "a device or pipe"),
        ("x", b"", {"type": tarfile.BLKTYPE}, "a device or pipe"),
        ("x", b"", {"type": tarfile.FIFOTYPE}, "a device or pipe"),
        ("x", b"", {"type": tarfile.GNUTYPE_SPARSE}, "a sparse file"),
    ],
)
def test_tar_members_that_are_refused(tmp_path, name, content, change, message):
    archive = tar_of(tmp_path / "b.tar", ("manifest.json", b"{}", {}), (name, content, change))
    with pytest.raises(BundleError) as caught:
        unpack(archive, tmp_path / "out")
    assert message in str(caught.value)
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["manifest.json"]


@pytest.mark.parametrize("size", [-1536, -(10**9)])
def test_a_member_of_a_negative_size(tmp_path, size):
    """A reader that believed it would go back to where it came from, or before the beginning."""
    with tarfile.open(tmp_path / "b.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a")
        info.size, info.pax_headers = 3, {"size": str(size)}
        tar.addfile(info, io.BytesIO(b"abc"))
    with pytest.raises(BundleError, match=r"b\.tar is damaged .* a has a negative size"):
        unpack(tmp_path / "b.tar", tmp_path / "out")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a", b"1", {}), ("a", b"2", {})], "holds a twice"),
        ([("a", b"1", {}), ("A", b"2", {})], "holds A twice"),
        ([("\u00e9", b"1", {}), ("e\u0301", b"2", {})], "holds e\u0301 twice"),
        ([("a", b"1", {}), ("a/b", b"2", {})], "a file where a/b needs a folder"),
        ([("a/b", b"1", {}), ("a", b"2", {})], "as a file and as a folder"),
        ([(str(i), b"", {}) for i in range(21)], "more files than a bundle can have"),
        ([("a", bytes(2**19), {})], "unpacks to more than"),
    ],
)
@pytest.mark.parametrize("kind", ["b.tar.gz", "b.zip"])
def test_repeats_and_limits(tmp_path, kind, members, message):
    archive = tmp_path / kind
    if kind.endswith("gz"):
        tar_of(archive, *members)
    else:
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, content, _ in members:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # of the repeated name, which is meant
                    zipped.writestr(name, content)
    with pytest.raises(BundleError, match=message):
        unpack(archive, tmp_path / "out", SMALL)
    written = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert written <= SMALL.free_bytes


def test_tar_header_bomb(tmp_path):
    """A header that claims megabytes is refused before it is read into memory."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2**24
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(info.tobuf() + bytes(2**24)))
    with pytest.raises(BundleError, match="a header of 16777216 bytes"):
        unpack(tmp_path / "b.tar.gz", tmp_path / "out", SMALL)


def test_tar_bomb_between_the_members(tmp_path):
    """Members of an unknown type are skipped by the library; what is skipped counts too."""
    archive = tar_of(tmp_path / "b.tar.gz", ("a", b"1", {}))
    with gzip.open(archive, "wb") as file:
        for _ in range(40):
            info = tarfile.TarInfo("x")
            info.type, info.size = b"Z", 2**20
            file.write(info.tobuf() + bytes(2**20))
    with pytest.raises(BundleError):
        unpack(archive, tmp_path / "out", SMALL)


@pytest.mark.parametrize("kind", ["b.tar", "b.tar.gz", "b.zip"])
@pytest.mark.parametrize("content", [b"", b"no archive at all" * 100], ids=["empty", "text"])
def test_damaged(tmp_path, kind, content):
    (tmp_path / kind).write_bytes(content)
    with pytest.raises(BundleError, match="damaged"):
        open_bundle(tmp_path / kind)


@pytest.mark.parametrize("kind", [".tar", ".tar.gz", ".zip"])
def test_cut_off(bundle_folder, temporary, kind):
    archive = pack(bundle_folder, kind, True)
    archive.write_bytes(archive.read_bytes()[:700])
    with pytest.raises(BundleError):
        open_bundle(archive)
    assert not any(temporary.iterdir())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from([".tar", ".tar.gz", ".zip"]))
def test_any_changed_bytes_give_a_bundle_or_an_error(bundle_folder, temporary, data, kind):
    archive = pack(bundle_folder, kind, True)
    content = bytearray(archive.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    archive.write_bytes(content)
    with contextlib.suppress(TsexportError):
        open_bundle(archive).close()
    assert not any(temporary.iterdir())


def encrypted_zip(path):
    """Set the flag of encryption in both headers: the same bytes as those of an encrypted member's header."""
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("manifest.json", "{}")
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    path.write_bytes(content)


def test_zip_encrypted(tmp_path):
    encrypted_zip(tmp_path / "b.zip")
    with pytest.raises(BundleError, match="encrypted") as caught:
        open_bundle(tmp_path / "b.zip")
    assert "give the folder" in str(caught.value)


@pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o010644])
def test_zip_links_and_devices(tmp_path, mode):
    info = zipfile.ZipInfo("x")
    info.external_attr = mode << 16
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as zipped:
        zipped.writestr(info, "/etc/passwd")
    with pytest.raises(BundleError, match="a link or a device"):
        unpack(tmp_path / "b.zip", tmp_path / "out")


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x"])
def test_zip_paths(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as zipped:
        zipped.writestr(name, "x")
    with pytest.raises(BundleError, match="relative, plain"):
        unpack(tmp_path / "b.zip", tmp_path / "out")


def test_two_folders_are_no_bundle(tmp_path):
    archive = tar_of(tmp_path / "b.tar", ("a/manifest.json", b"{}", {}), ("b/manifest.json", b"{}", {}))
    with pytest.raises(BundleError, match="neither at its top nor in its only folder"):
        open_bundle(archive)


def test_what_is_no_bundle(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"ends in \.tar, \.tar\.gz, \.zip"):
        open_bundle(tmp_path / "model.onnx")
    with pytest.raises(UsageError, match=r"there is no bundle .*nothing: No such file or directory"):
        open_bundle(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"there is no bundle x.*: File name too long"):
        open_bundle("x" * 300)
    with pytest.raises(UsageError, match=r"there is no bundle .*: embedded null byte"):
        open_bundle("x\0")
    with pytest.raises(BundleError, match=r"holds no manifest\.json"):
        open_bundle(tmp_path)


def test_pipes_are_not_waited_for(bundle_folder, tmp_path):
    os.mkfifo(tmp_path / "b.tar")
    with pytest.raises(UsageError, match=r"b\.tar is no bundle; a bundle is a folder or a file"):
        open_bundle(tmp_path / "b.tar")
    for name in ("SHA256SUMS", "manifest.json"):
        (bundle_folder / name).unlink()
        os.mkfifo(bundle_folder / name)
        with pytest.raises(BundleError, match=f"{name}.* is no plain file, or far too large"):
            tsexport.load(bundle_folder)


def test_a_bundle_is_named_alike_whatever_the_case_of_its_suffix(bundle_folder, tmp_path):
    archive = pack(bundle_folder, ".tar.gz", True).rename(tmp_path / "B.TAR.GZ")
    with open_bundle(archive) as bundle:
        assert bundle.name == "B"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_archive(tmp_path):
    archive = tar_of(tmp_path / "b.tar", ("manifest.json", b"{}", {}))
    archive.chmod(0)
    with pytest.raises(UsageError, match="cannot be unpacked"):
        open_bundle(archive)
