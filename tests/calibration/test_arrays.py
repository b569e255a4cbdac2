import io
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tsexport.calibration import arrays
from tsexport.calibration.arrays import ArrayDataset, NpzDataset
from tsexport.errors import DataError

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)
DTYPES = st.sampled_from(["<f4", ">f4", "<f8", "<i8", ">i4", "|u1", "|b1", "<f2"])


def npz_bytes(write, **members):
    buffer = io.BytesIO()
    write(buffer, **members)
    return buffer.getvalue()


def npy_bytes(array, **options):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


def write_members(path, **members):
    """Write raw bytes as members, for archives that numpy would not write."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data(), st.booleans(), st.sampled_from([1, 3, 7, 1 << 20]))
def test_any_array_comes_back_as_numpy_loads_it(tmp_path, data, compressed, block_bytes):
    count = data.draw(st.integers(1, 9))
    x = data.draw(hnp.arrays(data.draw(DTYPES), (count, *data.draw(SHAPES))))
    y = data.draw(hnp.arrays("<f4", (count,)))
    path = tmp_path / "a.npz"
    path.write_bytes(npz_bytes(np.savez_compressed if compressed else np.savez, x=x, target=y))
    indices = sorted(data.draw(st.sets(st.integers(0, count - 1), min_size=1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "BLOCK_BYTES", block_bytes)
        batches = list(NpzDataset(path).read(indices, data.draw(st.integers(1, 10))))
    read = np.concatenate([b.feeds["x"] for b in batches])
    assert read.dtype == x.dtype.newbyteorder("=")
    np.testing.assert_array_equal(read, x[indices])
    np.testing.assert_array_equal(np.concatenate([b.target for b in batches]), y[indices])


def test_npz_describes_itself(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, tokens=np.zeros((4, 2), np.int64), x=np.ones((4, 3), np.float32), target=np.zeros(4))
    data = NpzDataset(path)
    assert (data.names, data.count, data.has_target) == (("tokens", "x"), 4, True)
    batch = next(data.batches(3))
    assert batch.ids == ("sample:000000", "sample:000001", "sample:000002")
    assert set(batch.feeds) == {"tokens", "x"}
    np.savez(tmp_path / "b.npz", x=np.ones((4, 3), np.float32))
    without = NpzDataset(tmp_path / "b.npz")
    assert not without.has_target
    assert next(without.batches(9)).target is None
    assert without.digest != data.digest


def test_big_endian_digest_is_that_of_the_same_numbers():
    little = ArrayDataset({"x": np.arange(6, dtype="<f4").reshape(3, 2)})
    assert little.digest == ArrayDataset({"x": np.arange(6, dtype=">f4").reshape(3, 2)}).digest
    assert little.digest != ArrayDataset({"y": np.arange(6, dtype="<f4").reshape(3, 2)}).digest
    assert little.digest != ArrayDataset({"x": np.arange(6, dtype="<f4").reshape(3, 2)}, target=np.zeros(3)).digest


def test_digest_in_blocks_equals_digest_at_once(monkeypatch):
    x = np.random.default_rng(0).standard_normal((50, 3))
    whole = ArrayDataset({"x": x}).digest
    monkeypatch.setattr(arrays, "BLOCK_BYTES", 32)
    assert ArrayDataset({"x": x}).digest == whole


def test_objects_are_never_unpickled(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.array([{"a": 1}, None], dtype=object))
    with pytest.raises(DataError, match=r"'x' holds Python objects \(a pickle\), which are not read"):
        NpzDataset(path)


@pytest.mark.parametrize("array", [np.array(["a", "b"]), np.zeros(2, "c8"), np.zeros(2, [("f", "f4")])])
def test_other_kinds_are_refused(tmp_path, array):
    np.savez(tmp_path / "a.npz", x=array)
    for attempt in (lambda: NpzDataset(tmp_path / "a.npz"), lambda: ArrayDataset({"x": array})):
        with pytest.raises(DataError, match="allowed are floating-point numbers, integers and booleans") as error:
            attempt()
        assert "astype" in error.value.next_step


def test_fortran_order_names_the_way_out(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.asfortranarray(np.zeros((4, 3))))
    with pytest.raises(DataError, match="Fortran order") as error:
        NpzDataset(tmp_path / "a.npz")
    assert "numpy.ascontiguousarray(x)" in error.value.next_step


def test_counts_must_agree(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 3)), target=np.zeros(5))
    with pytest.raises(DataError, match="different numbers of samples: x 4, target 5"):
        NpzDataset(tmp_path / "a.npz")
    with pytest.raises(DataError, match="different numbers of samples: x 4, target 5"):
        ArrayDataset({"x": np.zeros((4, 3))}, target=np.zeros(5))


def test_no_inputs(tmp_path):
    np.savez(tmp_path / "a.npz", target=np.zeros(5))
    with pytest.raises(DataError, match="holds no input"):
        NpzDataset(tmp_path / "a.npz")
    with pytest.raises(DataError, match="hold no input"):
        ArrayDataset({})


def test_a_single_number_is_no_array_of_samples(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.float32(1))
    with pytest.raises(DataError, match="'x' is a single number"):
        NpzDataset(tmp_path / "a.npz")


def test_not_a_zip(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"no archive at all")
    with pytest.raises(DataError, match=r"a\.npz cannot be read as an \.npz") as error:
        NpzDataset(path)
    assert "numpy.savez" in error.value.next_step


def test_a_foreign_member(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(DataError, match=r"'readme\.txt', which is no array"):
        NpzDataset(tmp_path / "a.npz")


@pytest.mark.parametrize("header", [b"", b"\x93NUMPY\x01\x00\x10\x00{'broken': True}", b"\x93NUMPY\x07\x00", b"PK"])
def test_a_broken_header(tmp_path, header):
    with pytest.raises(DataError, match="'x' has no valid header"):
        NpzDataset(write_members(tmp_path / "a.npz", x=header))


@pytest.mark.parametrize("change", [lambda b: b[:-4], lambda b: b + b"1234"])
def test_a_member_of_the_wrong_size(tmp_path, change):
    content = change(npy_bytes(np.zeros((4, 3), np.float32)))
    with pytest.raises(DataError, match=r"should take \d+ bytes and takes \d+: it is damaged"):
        NpzDataset(write_members(tmp_path / "a.npz", x=content))


def test_a_header_that_claims_more_than_there_is_allocates_nothing(tmp_path):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (1 << 50, 1 << 30)})
    with pytest.raises(DataError, match="it is damaged"):
        NpzDataset(write_members(tmp_path / "a.npz", x=buffer.getvalue()))


@pytest.mark.filterwarnings("ignore:Duplicate name")  # zipfile's own warning while the test writes the archive
def test_two_members_of_one_name(tmp_path):
    content = npy_bytes(np.zeros((4, 3), np.float32))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content)
        archive.writestr("x.npy", content)
    with pytest.raises(DataError, match="two arrays named 'x'"):
        NpzDataset(tmp_path / "a.npz")


def test_damage_inside_a_member_is_found_while_reading(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros((64, 64), np.float32))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    data = NpzDataset(path)
    with pytest.raises(DataError, match="Bad CRC-32"):
        list(data.batches(8))


def test_second_format_version_is_read(tmp_path):
    content = npy_bytes(np.arange(4.0), version=(2, 0))
    data = NpzDataset(write_members(tmp_path / "a.npz", x=content))
    assert next(data.batches(4)).feeds["x"].tolist() == [0, 1, 2, 3]
