"""The fault suite's results as tables."""

from collections.abc import Callable, Sequence
from statistics import median

from tsexport.bench.suites.fault_records import Kill, Report, State
from tsexport.bench.suites.report import machine_text, table

STATES: tuple[State, ...] = ("none", "old", "new", "damaged")
STATE_COLUMNS = ("nothing there", "the old, whole", "the new, whole", "damaged")


def report_text(report: Report) -> str:
    """Return the tables as Markdown."""
    kills = report.kills
    broken = [kill for kill in kills if kill.problems]
    return "\n".join(
        [
            "# Kills at random points",
            "",
            f"{machine_text(report.machine)}; `{report.model}` for `{report.target}`, seed {report.seed}; "
            f"{len(kills)} kills, {len(kills) - len(broken)} as promised; {_code(kills)}.",
            "",
            "## By command",
            "",
            _outcomes("command", kills, lambda kill: kill.draw.case),
            "",
            "## By signal",
            "",
            _outcomes("signal", kills, lambda kill: kill.draw.signal),
            "",
            "## By point",
            "",
            _outcomes("point", kills, point_of),
            "",
            "## The next call of the same command",
            "",
            _recovery(report),
            "",
            *_broken(broken),
        ]
    )


def _code(kills: Sequence[Kill]) -> str:
    states = list(dict.fromkeys(kill.code_digest for kill in kills))
    return f"code {', '.join(states)}" if len(states) < 2 else f"{len(states)} states of the code: {', '.join(states)}"


def point_of(kill: Kill) -> str:
    """Return where a kill came, as a table names it."""
    if not kill.reached:
        return "after the end: the command was done before"
    if kill.draw.how == "change":
        return f"at a change in the {kill.draw.place} folder"
    return "at a moment, after the step: " + kill.after if kill.after != "start" else "at a moment, before any step"


def _outcomes(name: str, kills: Sequence[Kill], key: Callable[[Kill], str]) -> str:
    rows = []
    for value in sorted({key(kill) for kill in kills}):
        those = [kill for kill in kills if key(kill) == value]
        rows.append(
            [
                value,
                str(len(those)),
                *(str(sum(kill.state == state for kill in those)) for state in STATES),
                str(sum(kill.damaged_entries for kill in those)),
                str(sum(kill.left > 0 for kill in those)),
                str(sum(kill.next_code in (0, 2, 4, 6) and not kill.problems for kill in those)),
                str(sum(kill.left_after > 0 for kill in those)),
            ]
        )
    columns = (
        name, "kills", *STATE_COLUMNS, "damaged cache entries", "left hidden files", "next as promised",
        "leftovers after it",
    )  # fmt: skip
    return table(columns, rows)


def _recovery(report: Report) -> str:
    rows = []
    for whole in report.undisturbed:
        those = [
            kill.next_seconds
            for kill in report.kills
            if (kill.draw.case, kill.draw.cache) == (whole.case, whole.cache) and kill.reached
        ]
        if those:
            rows.append(
                [
                    whole.case,
                    whole.cache,
                    f"{whole.seconds:.1f}",
                    str(len(those)),
                    f"{median(those):.1f}",
                    f"{max(those):.1f}",
                ]
            )
    columns = ("command", "cache", "undisturbed, s", "kills", "next, median s", "next, longest s")
    return table(columns, rows)


def _broken(kills: Sequence[Kill]) -> list[str]:
    if not kills:
        return []
    lines = [f"- {kill.draw.name}, {kill.draw.signal} {point_of(kill)}: {'; '.join(kill.problems)}" for kill in kills]
    return ["## Not as promised", "", *lines, ""]
