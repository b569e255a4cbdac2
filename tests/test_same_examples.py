"""Property tests take the same examples every time: whatever was imported before, and whatever constants the code has.

A change would otherwise be blamed for a draw that another test, or another number in the code, has brought about.
"""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def examples():
    """Return what a property test is given now."""
    seen = []

    @given(st.lists(st.integers(0, 10**6), min_size=20, max_size=20))
    def take(values):
        seen.append(values)

    take()
    return seen


@pytest.mark.skipif("HYPOTHESIS_PROFILE" in os.environ, reason="another profile of hypothesis was asked for")
def test_a_module_with_constants_of_its_own_changes_no_example(tmp_path, monkeypatch):
    assert settings.default.derandomize
    before = examples()
    assert len(before) == settings.default.max_examples
    numbers = ", ".join(str(1000 + 7 * index) for index in range(200))
    (tmp_path / "module_with_constants.py").write_text(f"NUMBERS = [{numbers}]\n")
    monkeypatch.syspath_prepend(tmp_path)
    import module_with_constants

    assert len(module_with_constants.NUMBERS) == 200
    assert examples() == before
