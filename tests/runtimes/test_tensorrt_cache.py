"""Engines in the cache: the key holds what they depend on, and what does not fit is refused.  Needs no GPU."""

from dataclasses import replace
from pathlib import Path

import pytest

from tsexport.errors import UsageError
from tsexport.runtimes.tensorrt_cache import (
    ENGINE,
    RECORD,
    EngineRequest,
    GpuFacts,
    cache_folder,
    differences,
    engine_folder,
    read_engine,
    read_timing_cache,
    timing_cache_path,
    write_engine,
    write_file,
)

ORIN = GpuFacts("Orin", "8.7", "540.4.0")
WANTED = EngineRequest("ab" * 32, "10.3.0", ORIN, "fp16", ("STRONGLY_TYPED",), ("x 1x4 1x4 8x4",), 2**30)
OTHERS = {
    "onnx_sha256": ("cd" * 32, f"the ONNX file is {'cd' * 32}, wanted is {'ab' * 32}"),
    "tensorrt": ("10.7.0", "TensorRT is 10.7.0, wanted is 10.3.0"),
    "gpu": (
        replace(ORIN, driver="540.5.0"),
        "the GPU or driver is Orin (compute capability 8.7, driver 540.5.0), "
        "wanted is Orin (compute capability 8.7, driver 540.4.0)",
    ),
    "precision": ("int8", "the precision is int8, wanted is fp16"),
    "flags": ((), "the flags is none, wanted is STRONGLY_TYPED"),
    "profile": (("x 1x4 4x4 8x4",), "the optimization profile is x 1x4 4x4 8x4, wanted is x 1x4 1x4 8x4"),
    "workspace_bytes": (2**20, "the workspace is 1048576, wanted is 1073741824"),
}


@pytest.fixture
def engine(tmp_path) -> Path:
    folder = engine_folder(tmp_path, WANTED)
    write_engine(folder, WANTED, b"an engine", 12.3456)
    return folder


def test_an_engine_is_read_back(engine):
    assert read_engine(engine, WANTED) == b"an engine"
    assert {path.name for path in engine.iterdir()} == {ENGINE, RECORD}


@pytest.mark.parametrize("field", OTHERS)
def test_a_stale_engine_is_refused_with_the_reason(engine, field):
    value, said = OTHERS[field]
    built = replace(WANTED, **{field: value})
    assert built.key != WANTED.key
    assert differences(built, WANTED) == said
    write_engine(engine, built, b"an engine", 1.0)
    with pytest.raises(UsageError) as caught:
        read_engine(engine, WANTED)
    assert caught.value.message == f"the engine in {engine} is refused: {said}"
    assert caught.value.next_step == "build it again on this machine"


def test_every_field_of_a_request_is_said():
    assert set(OTHERS) == set(EngineRequest.__dataclass_fields__)
    assert differences(WANTED, replace(WANTED)) == ""
    assert WANTED.key == replace(WANTED).key


def test_a_damaged_engine_is_refused(engine):
    (engine / ENGINE).write_bytes(b"another")
    with pytest.raises(UsageError, match=r"is refused: its digest is .*, its record says "):
        read_engine(engine, WANTED)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / RECORD).unlink(), "engine.json"),
        (lambda folder: (folder / ENGINE).unlink(), "engine.plan: No such file or directory"),
        (lambda folder: (folder / RECORD).write_text("{"), "engine.json is not valid JSON"),
        (
            lambda folder: (folder / RECORD).write_text('{"schema_version": 9}'),
            "engine.json has schema_version 9",
        ),
    ],
)
def test_what_holds_no_engine(engine, damage, reason):
    damage(engine)
    with pytest.raises(UsageError, match="holds no engine that can be used: ") as caught:
        read_engine(engine, WANTED)
    assert reason in caught.value.message
    assert caught.value.next_step == "build it again on this machine"


def test_timing_caches_are_shared_by_version_and_gpu(tmp_path):
    path = timing_cache_path(tmp_path, WANTED)
    assert path == timing_cache_path(tmp_path, replace(WANTED, onnx_sha256="cd" * 32, precision="int8", profile=()))
    assert path != timing_cache_path(tmp_path, replace(WANTED, tensorrt="10.7.0"))
    assert path != timing_cache_path(tmp_path, replace(WANTED, gpu=replace(ORIN, compute_capability="8.0")))
    assert read_timing_cache(path) == b""
    write_file(path, b"timings")
    assert read_timing_cache(path) == b"timings"
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=r"engine\.plan cannot be written: ") as caught:
        write_engine(tmp_path / "file", WANTED, b"an engine", 1.0)
    assert caught.value.next_step == "set TSEXPORT_CACHE to a folder that can be written, or make room there"


def test_engines_lie_in_tsexports_cache_and_in_no_bundle(monkeypatch, tmp_path):
    monkeypatch.setenv("TSEXPORT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "tensorrt"
    monkeypatch.delenv("TSEXPORT_CACHE")
    assert cache_folder().parts[-2:] == ("tsexport", "tensorrt")
