"""Named arrays in a file: what goes in comes out, in the same bytes each time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tsexport.npz import read_arrays, write_arrays

NAMES = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=8)
ARRAYS = hnp.arrays(st.sampled_from([np.float32, np.int64, np.bool_]), hnp.array_shapes(min_dims=0, max_dims=3))


@given(arrays=st.dictionaries(NAMES, ARRAYS, max_size=4), compress=st.booleans())
def test_arrays_come_back(tmp_path_factory, arrays, compress):
    path = tmp_path_factory.mktemp("npz") / "arrays.npz"
    write_arrays(path, arrays, compress=compress)
    found = read_arrays(path)
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("name", ["file", "self", "allow_pickle", "args"])
def test_names_that_numpy_uses_itself(tmp_path, name):
    write_arrays(tmp_path / "arrays.npz", {name: np.ones(3)})
    assert read_arrays(tmp_path / "arrays.npz")[name].shape == (3,)


def test_equal_arrays_give_equal_bytes_in_any_order(tmp_path):
    a, b = np.arange(6.0).reshape(2, 3), np.ones(2)
    write_arrays(tmp_path / "1.npz", {"a": a, "b": b})
    write_arrays(tmp_path / "2.npz", {"b": b, "a": np.asfortranarray(a)})
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()


def test_objects_are_refused(tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        write_arrays(tmp_path / "arrays.npz", {"x": np.array([{}], dtype=object)})
