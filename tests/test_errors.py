"""What is shown of an error that another library raised."""

import pytest

from tsexport.errors import reason_of


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("it failed", "it failed"),
        ("\n\n  it failed  \nat some place", "it failed"),
        ("", "ValueError"),
        ("Exception from src/core.cpp:1:\nCheck 'a == b' failed at x.cpp:2:\nshapes differ\n", "shapes differ"),
        ("Exception from src/core.cpp:1:\n", "ValueError"),
        (
            "in the interpreter.\nTraceback of TorchScript (most recent call last):\n  f.py\nRuntimeError: why",
            "RuntimeError: why",
        ),
        ("no such operator. Please feel free to request support", "no such operator."),
        ("file not found. This is an internal miniz error. If you are", "file not found"),
        ("x" * 1000, "x" * 300),
    ],
)
def test_the_line_that_says_why(text, shown):
    assert reason_of(ValueError(text)) == shown
