"""What artifacts are fast enough for, as rows of the report: a column a use case, the batch sizes that hold it.

The use cases are those that stand with the measurements; none is looked up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tsexport.bench.device_records import DeviceRecord, measurements_of
from tsexport.bench.records import MachineRecord
from tsexport.bench.use_cases import UseCaseAnswer, UseCaseStatus, answer_use_cases

_WORDS: dict[UseCaseStatus, str] = {"met": "yes", "missed": "no", "inconclusive": "inconclusive"}


@dataclass(frozen=True)
class UseCaseColumn:
    """A use case: what it allows a call, and what it is for."""

    name: str
    allowed: str
    note: str


@dataclass(frozen=True)
class UseCaseRow:
    """One artifact on one runtime; a cell has (text, status) for each answer that some batch sizes share."""

    artifact: str
    runtime: str
    cells: tuple[tuple[tuple[str, UseCaseStatus], ...], ...]


@dataclass(frozen=True)
class UseCaseTable:
    """Use cases and the artifacts that were held against them; no rows where nothing was."""

    columns: tuple[UseCaseColumn, ...] = ()
    rows: tuple[UseCaseRow, ...] = ()


def machine_answers(record: MachineRecord) -> tuple[UseCaseAnswer, ...]:
    """Return what the measurements of a machine answer."""
    return answer_use_cases(record.service_levels, record.measurements)


def device_answers(record: DeviceRecord) -> tuple[UseCaseAnswer, ...]:
    """Return what an attached run answers; nothing where the engine's accuracy was not verified.

    A latency without the copies is no longer than that of a whole call: it can miss a use case, and cannot hold one.
    """
    if record.quantization == "implicit":
        return ()
    answers = answer_use_cases(record.service_levels, measurements_of(record))
    if record.transfers == "included":
        return answers
    return tuple(replace(one, status="inconclusive") if one.status == "met" else one for one in answers)


def use_case_table(answers: Sequence[UseCaseAnswer]) -> UseCaseTable:
    """Return answers as a table, artifacts and use cases in their order."""
    columns = use_case_columns(answers)
    grouped: dict[tuple[str, str], list[UseCaseAnswer]] = {}
    for one in answers:
        grouped.setdefault((one.artifact, one.runtime), []).append(one)
    rows = (UseCaseRow(*key, use_case_cells(same, columns)) for key, same in grouped.items())
    return UseCaseTable(columns, tuple(rows))


def use_case_columns(answers: Sequence[UseCaseAnswer]) -> tuple[UseCaseColumn, ...]:
    """Return the use cases that were asked, each once."""
    return tuple(dict.fromkeys(_column(one) for one in answers))


def use_case_cells(
    answers: Sequence[UseCaseAnswer], columns: Sequence[UseCaseColumn]
) -> tuple[tuple[tuple[str, UseCaseStatus], ...], ...]:
    """Return a cell for each column; () where it was not asked."""
    return tuple(_cell([one for one in answers if _column(one) == column]) for column in columns)


def _column(one: UseCaseAnswer) -> UseCaseColumn:
    return UseCaseColumn(one.use_case, f"{one.max_ms:g} ms", one.note)


def _cell(answers: Sequence[UseCaseAnswer]) -> tuple[tuple[str, UseCaseStatus], ...]:
    """Return "yes at batch 1, 10" and "no at batch 32"."""
    batches: dict[UseCaseStatus, list[int]] = {}
    for one in answers:
        batches.setdefault(one.status, []).append(one.batch)
    return tuple(
        (f"{word} at batch {', '.join(map(str, sorted(batches[status])))}", status)
        for status, word in _WORDS.items()
        if status in batches
    )
