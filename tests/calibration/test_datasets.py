import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsexport.calibration.arrays import ArrayDataset
from tsexport.calibration.datasets import Subset, draw
from tsexport.errors import DataError


def numbered(count):
    """Samples that hold their own index."""
    index = np.arange(count, dtype=np.float32)
    return ArrayDataset({"x": index[:, None]}, target=index)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 45), st.none() | st.integers(0, 45))
def test_batches_are_the_slice_cut_into_pieces(count, batch_size, start, stop):
    batches = list(numbered(count).batches(batch_size, start=start, stop=stop))
    expected = np.arange(count)[start:stop]
    assert [int(i) for b in batches for i in b.target] == expected.tolist()
    assert [i for b in batches for i in b.ids] == [f"sample:{i:06d}" for i in expected]
    assert all(len(b) == batch_size for b in batches[:-1])
    assert all(len(b) > 0 for b in batches)


@given(st.integers(1, 60), st.data())
def test_draw_is_sorted_without_repeats_and_reproducible(count, data):
    exclude = data.draw(st.sets(st.integers(0, count - 1), max_size=count - 1))
    wanted = data.draw(st.integers(1, count - len(exclude)))
    seed = data.draw(st.integers(0, 5))
    drawn = draw(numbered(count), wanted, seed, exclude=exclude)
    assert len(drawn.indices) == drawn.count == wanted
    assert list(drawn.indices) == sorted(set(drawn.indices))
    assert not set(drawn.indices) & exclude
    assert drawn.indices == draw(numbered(count), wanted, seed, exclude=exclude).indices
    assert [int(i) for b in drawn.batches(7) for i in b.target] == list(drawn.indices)
    assert drawn.sample_ids == tuple(f"sample:{i:06d}" for i in drawn.indices)


def test_draw_can_reach_every_sample_that_is_left():
    drawn = draw(numbered(6), 3, seed=0, exclude=(0, 2, 5))
    assert drawn.indices == (1, 3, 4)


def test_seeds_draw_differently():
    assert len({draw(numbered(1000), 10, seed).indices for seed in range(5)}) == 5


def test_drawing_does_not_change_with_versions():
    assert draw(numbered(100), 5, seed=7).indices == (6, 19, 41, 50, 83)


def test_drawing_too_many_says_how_many_there_are():
    with pytest.raises(DataError, match=r"11 samples were asked for and the data holds 10\.") as error:
        draw(numbered(10), 11, seed=0)
    assert "fewer samples" in error.value.next_step
    with pytest.raises(DataError, match="holds 10, 4 of them already used"):
        draw(numbered(10), 7, seed=0, exclude=range(4))


def test_digest_depends_on_content_and_choice():
    base, other = numbered(10), numbered(11)
    digests = {base.digest, other.digest, Subset(base, (1, 2)).digest, Subset(base, (1, 3)).digest}
    assert len(digests) == 4
    assert Subset(base, (2, 1)).digest == Subset(numbered(10), (1, 2)).digest
    assert all(len(digest) == 64 for digest in digests)


def test_misuse_is_a_value_error():
    data = numbered(5)
    for indices in ((3, 2), (1, 1), (4, 5), (-1, 0)):
        with pytest.raises(ValueError, match="increase strictly"):
            list(data.read(indices, 2))
    with pytest.raises(ValueError, match="batch_size"):
        list(data.batches(0))
    with pytest.raises(ValueError, match="count from 0"):
        list(data.batches(1, start=-1))
    with pytest.raises(ValueError, match=r"0\.\.4"):
        Subset(data, (5,))
    with pytest.raises(ValueError, match="count must be 1"):
        draw(data, 0, 0)


def test_subset_of_a_subset():
    inner = Subset(Subset(numbered(20), range(5, 15)), (0, 9))
    assert inner.sample_ids == ("sample:000005", "sample:000014")
    assert inner.names == ("x",)
    assert inner.has_target
