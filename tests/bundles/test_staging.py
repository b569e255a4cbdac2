"""However a build ends, there is the whole old bundle or the whole new one, and nothing else is left for good."""

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tsexport.bundles import staging as staging_module
from tsexport.bundles.checksums import check_sums, seal
from tsexport.bundles.staging import edited_bundle, remove_leftovers, staged_bundle
from tsexport.errors import UsageError

WRITER = Path(__file__).with_name("staged_writer.py")


@pytest.fixture
def destination(tmp_path):
    return tmp_path / "dist" / "model-cpu4-int8"


def write(destination, text, *, force=False):
    with staged_bundle(destination, force=force) as staging:
        (staging / "manifest.json").write_text(text)
        (staging / "weights").write_text(text * 1000)


def content(destination):
    """Return the text of a whole bundle, having checked that it is whole."""
    check_sums(destination)
    text = (destination / "manifest.json").read_text()
    assert (destination / "weights").read_text() == text * 1000
    return text


def siblings(destination):
    return sorted(path.name for path in destination.parent.iterdir())


def test_writes_and_seals(destination):
    write(destination, "new")
    assert content(destination) == "new"
    assert siblings(destination) == [destination.name]
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    subprocess.run(check, cwd=destination, check=True)


def test_permissions(destination):
    with staged_bundle(destination, force=False) as staging:
        for name, mode in (("private", 0o600), ("script.sh", 0o700)):
            (staging / name).write_text(name)
            (staging / name).chmod(mode)
    modes = {path.name: path.stat().st_mode & 0o777 for path in destination.iterdir()}
    assert modes == {"private": 0o644, "script.sh": 0o755, "SHA256SUMS": 0o644, "measurements": 0o755}
    assert destination.stat().st_mode & 0o777 == 0o755


def test_an_existing_bundle_needs_force(destination):
    write(destination, "old")
    with pytest.raises(UsageError, match="is there already") as caught:
        write(destination, "new")
    assert "--force" in str(caught.value)
    assert content(destination) == "old"
    write(destination, "new", force=True)
    assert content(destination) == "new"
    assert siblings(destination) == [destination.name]


def test_one_that_appears_meanwhile_is_kept(destination):
    with pytest.raises(UsageError, match="is there already"), staged_bundle(destination, force=False):
        write(destination, "other")
    assert content(destination) == "other"
    assert siblings(destination) == [destination.name]


def test_force_replaces_bundles_only(destination):
    destination.mkdir(parents=True)
    (destination / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="something other than a bundle"):
        write(destination, "new", force=True)
    assert (destination / "thesis.txt").read_text() == "years of work"


def test_force_takes_an_empty_folder(destination):
    destination.mkdir(parents=True)
    write(destination, "new", force=True)
    assert content(destination) == "new"


@pytest.mark.parametrize("make", [lambda path: path.write_text("x"), lambda path: path.symlink_to("/")])
def test_force_does_not_replace_files_and_links(destination, make):
    destination.parent.mkdir()
    make(destination)
    with pytest.raises(UsageError, match="is no folder"):
        write(destination, "new", force=True)
    assert siblings(destination) == [destination.name]


def test_names_do_not_begin_with_a_dot(tmp_path):
    with pytest.raises(UsageError, match="do not begin with a dot"):
        write(tmp_path / ".hidden", "new")


def test_the_parent_is_a_file(tmp_path):
    (tmp_path / "dist").write_text("x")
    with pytest.raises(UsageError, match="dist is a file, and a folder is needed"):
        write(tmp_path / "dist" / "model", "new")


def write_until(destination, error):
    with staged_bundle(destination, force=True) as staging:
        (staging / "manifest.json").write_text("half")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_an_interrupt_leaves_the_old(destination, error):
    write(destination, "old")
    with pytest.raises(error):
        write_until(destination, error)
    assert content(destination) == "old"
    assert siblings(destination) == [destination.name]


def test_a_failing_second_rename_puts_the_old_back(destination, monkeypatch):
    """On a file system that cannot exchange two folders in one step."""
    write(destination, "old")
    rename = Path.rename

    def fail_for_the_new(path, to):
        if path.name.endswith(".building"):
            raise OSError(errno.EIO, "input/output error")
        return rename(path, to)

    monkeypatch.setattr(staging_module, "_exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(OSError, match="input/output error"):
        write(destination, "new", force=True)
    assert content(destination) == "old"
    assert siblings(destination) == [destination.name]


def test_without_an_exchange(destination, monkeypatch):
    write(destination, "old")
    monkeypatch.setattr(staging_module, "_exchange", lambda one, other: False)
    write(destination, "new", force=True)
    assert content(destination) == "new"
    assert siblings(destination) == [destination.name]


def killed_at(destination, point, *edit):
    """Start a build in another process, kill it with SIGKILL when it says that it is there."""
    process = subprocess.Popen(
        [sys.executable, WRITER, destination, point, *edit], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        line = process.stdout.readline()
        if line == f"at {point}\n":
            during = remove_leftovers(destination.parent) if point == "writing" else ()
            os.kill(process.pid, signal.SIGKILL)
    assert line == f"at {point}\n"
    assert during == (), "the folder of a build that runs was taken for a leftover"
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("edit", [(), ("edit",)])
@pytest.mark.parametrize(("point", "expected"), [("writing", "old"), ("sealed", "old"), ("exchanged", "new")])
def test_a_kill_leaves_one_whole_bundle(destination, point, expected, edit):
    write(destination, "old")
    killed_at(destination, point, *edit)
    assert content(destination) == expected
    leftovers = [name for name in siblings(destination) if name != destination.name]
    assert len(leftovers) == 1
    assert leftovers[0].startswith(".")
    write(destination.with_name("another"), "x")
    assert siblings(destination) == ["another", destination.name]
    assert content(destination) == expected


@pytest.mark.parametrize("edit", [(), ("edit",)])
def test_a_kill_between_two_renames_is_repaired(destination, edit):
    write(destination, "old")
    killed_at(destination, "between", *edit)
    assert not destination.exists()
    remove_leftovers(destination.parent)
    assert content(destination) == "old"
    assert siblings(destination) == [destination.name]


def edit(destination, text):
    with edited_bundle(destination) as copy:
        for name, content in (("manifest.json", text), ("weights", text * 1000)):
            (copy / name).unlink()
            (copy / name).write_text(content)
        seal(copy)


def test_an_edit_takes_the_bundle_s_place_and_leaves_open_files_alone(destination):
    write(destination, "old")
    untouched = (destination / "weights").stat().st_ino
    with (destination / "manifest.json").open() as reader:
        edit(destination, "new")
        assert reader.read() == "old"
    assert content(destination) == "new"
    assert (destination / "weights").stat().st_ino != untouched
    assert destination.stat().st_mode & 0o777 == 0o755
    assert siblings(destination) == [destination.name]


def test_an_edit_where_files_cannot_be_linked(destination, monkeypatch):
    write(destination, "old")

    def refuse(*paths, **options):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    edit(destination, "new")
    assert content(destination) == "new"


def fail_half_way(destination):
    with edited_bundle(destination) as copy:
        (copy / "manifest.json").unlink()
        raise ValueError("half way")


def test_an_edit_that_raises_leaves_the_old(destination):
    write(destination, "old")
    with pytest.raises(ValueError, match="half way"):
        fail_half_way(destination)
    assert content(destination) == "old"
    assert siblings(destination) == [destination.name]


def test_two_edits_at_once_see_each_other(destination):
    """The second waits for the bundle's lock, and gets that of the bundle that took its place."""
    write(destination, "0")
    numbers = []

    def add_one():
        with edited_bundle(destination) as copy:
            number = int((copy / "manifest.json").read_text()) + 1
            for name, text in (("manifest.json", str(number)), ("weights", str(number) * 1000)):
                (copy / name).unlink()
                (copy / name).write_text(text)
            seal(copy)
            numbers.append(number)

    threads = [threading.Thread(target=add_one) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert numbers == [1, 2, 3, 4, 5]
    assert content(destination) == "5"
    assert siblings(destination) == [destination.name]


def test_a_bundle_that_a_build_replaces_meanwhile_is_left_alone(destination):
    write(destination, "old")
    with pytest.raises(UsageError, match="model-cpu4-int8 was replaced meanwhile"), edited_bundle(destination):
        write(destination, "other", force=True)
    assert content(destination) == "other"
    assert siblings(destination) == [destination.name]


def test_leftovers_are_looked_for_in_a_folder_that_is_a_link(destination):
    (destination.parent / ".model.12-0123abcd.building").mkdir(parents=True)
    link = destination.parent.with_name("link")
    link.symlink_to(destination.parent)
    assert [path.name for path in remove_leftovers(link)] == [".model.12-0123abcd.building"]


def test_a_kill_without_an_old_one(destination):
    killed_at(destination, "sealed")
    assert not destination.exists()
    write(destination, "new")
    assert content(destination) == "new"
    assert siblings(destination) == [destination.name]


def test_what_is_not_ours_is_left_alone(destination):
    kept = (".git", ".model.12-0123abcd.building.bak", ".cache", "model.12-0123abcd.building")
    for name in kept:
        (destination.parent / name).mkdir(parents=True)
    assert remove_leftovers(destination.parent) == ()
    assert siblings(destination) == sorted(kept)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs is not permitted here (needs root)")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(small_disk):
    destination = small_disk / "model"
    write(destination, "old")
    with pytest.raises(UsageError, match="no space left"):
        write_too_much(destination)
    assert content(destination) == "old"
    assert siblings(destination) == ["model"]


def write_too_much(destination, *, words=None, limit_bytes=None):
    """Write 1 MiB: raise RuntimeError with `words` where that fails, and under a limit of the kernel on file sizes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with staged_bundle(destination, force=True) as staging:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
        try:
            (staging / "weights").write_bytes(bytes(2**20))
        except OSError as error:
            raise (RuntimeError(words) if words else error) from None
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_in_a_library_s_own_words(small_disk):
    """torch and openvino raise RuntimeError where a write fails."""
    with pytest.raises(UsageError, match="no space left"):
        write_too_much(small_disk / "model", words="failed writing file")
    assert siblings(small_disk / "model") == []


def test_a_file_size_limit(destination):
    """The same path as a full disk, without the right to mount: the kernel refuses the write (EFBIG)."""
    write(destination, "old")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(UsageError, match="the file is too large"):
            write_too_much(destination, limit_bytes=2**16)
    finally:
        signal.signal(signal.SIGXFSZ, handler)
    assert content(destination) == "old"
    assert siblings(destination) == [destination.name]


def test_a_read_only_folder(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(UsageError, match="the file system is read-only"):
        write(small_disk / "model", "new")


def test_other_errors_keep_their_own_words(destination):
    with pytest.raises(FileNotFoundError), staged_bundle(destination, force=False):
        Path("/nonexistent/checkpoint.pt").read_bytes()
    assert siblings(destination) == []
