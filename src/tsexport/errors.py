"""Every error that a user of tsexport can meet, and the exit code it ends with.

TsexportError
├── UsageError                  2   an option, a name or a file that cannot be used as given
│   ├── ConfigurationError      2   unknown or invalid configuration keys and values
│   ├── CheckpointError         2   a checkpoint that cannot be read, or does not fit the model
│   ├── DataError               2   calibration or evaluation data that cannot be used
│   │   └── CalibrationTableError 2 a calibration table that is damaged, or does not belong to this model and data
│   ├── ExportError             2   a model that no requested format can hold
│   ├── FeedError               2   a session was fed wrong names, dtypes or shapes
│   ├── BundleError             2   a bundle that is damaged, tampered with or of another schema
│   └── MissingDependencyError  2   an optional package is needed and not installed
├── VerificationError           3
│   ├── ParityError             3   an artifact does not answer as its source model does
│   ├── AccuracyError           3   no artifact holds the accuracy budget
│   └── GoldenError             3   a bundle's golden outputs are missed on this machine
├── LatencyError                4   a latency budget is missed, or a regression was found
├── UnsupportedError            5   the target cannot run what was asked for
└── InconclusiveError           6   nothing could be judged here
    └── NoRuntimeError          6   no runtime is installed for any artifact of a bundle

The command line turns only this tree into text; anything else is a bug and keeps its traceback (exit 1).
A message says what was given and what is allowed; `next_step` says what to do now.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches

_LONGEST_REASON = 300
_PREAMBLES = ("Exception from", "Check '", "FrontEnd API failed", "The following operation failed")
"""How lines begin in which OpenVINO says where in its source an error was raised."""
_AFTERWORDS = re.compile(r" Please feel free|  \[Caused by|\. This is an internal miniz error|, please report a bug")
"""Where torch and ONNX go on to invite to file an issue, or to guess."""
_LONGEST_GUESSED = 200
"""Characters of a word for which a close one is looked for: what comes over a network may have millions."""


class TsexportError(Exception):
    """Base of every error tsexport raises on purpose.

    Args:
        message: what was given, and what is allowed.
        next_step: what the user can do now (one sentence or command), or "".
    """

    exit_code = 2

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.message}\n{self.next_step}" if self.next_step else self.message


class UsageError(TsexportError):
    """An option, a name or a file that cannot be used as given."""


class ConfigurationError(UsageError):
    """Unknown or invalid configuration keys and values."""


class CheckpointError(UsageError):
    """A checkpoint that cannot be read safely, or that does not fit the model."""


class DataError(UsageError):
    """Calibration or evaluation data that cannot be used."""


class CalibrationTableError(DataError):
    """A calibration table that is damaged, or that does not belong to this model, this data or this observer."""


class ExportError(UsageError):
    """A model that a requested format cannot hold."""


class FeedError(UsageError):
    """A session was fed wrong names, dtypes or shapes."""


class BundleError(UsageError):
    """A bundle that is damaged, tampered with, or of another schema."""


class MissingDependencyError(UsageError):
    """An optional package is needed and not installed."""


class VerificationError(TsexportError):
    """Numbers were compared, and they do not hold."""

    exit_code = 3


class ParityError(VerificationError):
    """An artifact does not answer as its source model does."""


class AccuracyError(VerificationError):
    """No artifact holds the accuracy budget."""


class GoldenError(VerificationError):
    """A bundle's golden outputs are missed on this machine."""


class LatencyError(TsexportError):
    """A latency budget is missed, or a regression was found."""

    exit_code = 4


class UnsupportedError(TsexportError):
    """The target cannot run what was asked for."""

    exit_code = 5


class InconclusiveError(TsexportError):
    """Nothing could be judged here."""

    exit_code = 6


class NoRuntimeError(InconclusiveError):
    """No runtime is installed for any artifact of a bundle."""


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the closest allowed word, or ""."""
    close = get_close_matches(given, list(allowed), n=1, cutoff=0.6) if len(given) <= _LONGEST_GUESSED else []
    return f" (did you mean {close[0]!r}?)" if close else ""


def reason_of(error: BaseException) -> str:
    """Return the line of a library's error that says why, at most 300 characters; the error's type where none does.

    OpenVINO says first where in its source that was, and TorchScript's interpreter prints a traceback of its own.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "Traceback of TorchScript" in str(error):
        lines = lines[-1:]
    line = next((line for line in lines if not line.startswith(_PREAMBLES)), type(error).__name__)
    return _AFTERWORDS.split(line)[0].strip()[:_LONGEST_REASON]
