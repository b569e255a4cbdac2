"""Records as lines of JSON, between a process and the one that started it."""

import json
from dataclasses import dataclass
from typing import Any

from tsexport.codec import from_plain, to_plain
from tsexport.errors import DataError


@dataclass(frozen=True)
class Protocol:
    """The records that may be sent; `of` is whose messages they are, for the error: "a measuring process"."""

    of: str
    kinds: tuple[type[Any], ...]

    def to_line(self, message: object) -> str:
        """Return a record as one line of JSON, with its newline."""
        return json.dumps({"kind": type(message).__name__, "body": to_plain(message)}, allow_nan=False) + "\n"

    def from_line(self, line: str) -> Any:
        """Return the record that a line holds.

        Raises:
            DataError: no JSON, an unknown kind, or a body that does not fit it.
        """
        kinds = {kind.__name__: kind for kind in self.kinds}
        try:
            document = json.loads(line)
            kind, body = kinds[document["kind"]], document["body"]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{line[:200]!r} is no message of {self.of}") from None
        return from_plain(kind, body, what=kind.__name__, error=DataError)
