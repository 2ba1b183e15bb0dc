"""What ``vantage search --explain`` prints of a pass over the index."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.text import displayable
from workers.cli.output import counted, say, show_table, terminal_width

if TYPE_CHECKING:
    from pipeline.records import FusedResult, SearchResult

_WIDTH = 80
"""Columns of a sentence, if the terminal is that wide or output goes elsewhere."""

_MIB = 2**20


def show_explanations(results: Sequence[SearchResult | FusedResult]) -> None:
    """Print every pass that gave some of these answers, once."""
    from pipeline.records import FusedResult

    passes: list[list[SearchResult]] = []
    for result in results:
        for answer in result.answers if isinstance(result, FusedResult) else (result,):
            if not answer.explain:
                continue
            known = next((one for one in passes if _same_pass(one[0], answer)), None)
            if known is None:
                passes.append([answer])
            else:
                known.append(answer)
    for answers in passes:
        _show_pass(answers)


def _same_pass(one: SearchResult, other: SearchResult) -> bool:
    """Tell whether two answers are from one pass: the same groups with the same times."""
    return (one.collection, one.explain) == (other.collection, other.explain)


def _show_pass(answers: Sequence[SearchResult]) -> None:
    """Print one pass."""
    result = answers[0]
    explain = result.explain
    _say(f"Plan of {displayable(result.collection)}: {explain['plan']}; {explain['why']}.")
    tree, machine = explain["tree"], explain["machine"]
    effort = explain["effort"]
    _say(
        f"Tree: {counted(tree['rows'], 'row')} in {counted(tree['cells'], 'cell')}, "
        f"{counted(tree['levels'], 'level')}, {counted(tree['groups'], 'group')}"
        + (
            f"; effort {effort:g}: {counted(result.plan['cells_probed'], 'cell')} "
            "a query descriptor."
            if effort is not None
            else "; every cell is opened."
        )
    )
    paths = sorted({group["path"] for group in explain["groups"]}) or [machine["path"]]
    _say(
        f"Scanned for {counted(explain['images'], 'image')} with "
        f"{counted(explain['queries'], 'query descriptor')} together; kernels {', '.join(paths)}, "
        f"tiles of {machine['tile']}."
    )
    _show_groups(explain)
    _show_costs(explain)
    _show_times(answers)
    say("")


def _show_groups(explain: Mapping[str, Any]) -> None:
    """Print what each group's scan visited and compared."""
    groups = explain["groups"]
    rows = [[str(group["group"]), *_counts(group)] for group in groups]
    if len(groups) > 1:
        rows.append(["all", *_counts(_total(groups))])
    widest = max((len(row[-1]) for row in rows), default=0)
    numbers = ("group", "wanted", "cells", "rows", "MiB", "pairs", "by prefix", "matches", "ms")
    show_table(
        (*numbers[:-1], "ms".rjust(widest)),
        [[*row[:-1], row[-1].rjust(widest)] for row in rows],
        numbers=numbers,
        indent=2,
    )


def _counts(group: Mapping[str, Any]) -> list[str]:
    """Return the figures of a line."""
    pairs, computed = group["pairs"], group["computed"]
    by_prefix = "-" if computed is None or not pairs else f"{(pairs - computed) / pairs:.1%}"
    return [
        short(group["wanted"]),
        short(group["cells"]),
        short(group["visited"]),
        f"{group['bytes'] / _MIB:,.1f}",
        short(pairs),
        by_prefix,
        short(group["matches"]),
        f"{group['ms']:,.1f}",
    ]


def _total(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sums of all groups."""
    names = ("wanted", "cells", "visited", "bytes", "pairs", "matches", "ms")
    total: dict[str, Any] = {name: sum(group[name] for group in groups) for name in names}
    computed = [group["computed"] for group in groups]
    total["computed"] = None if None in computed else sum(computed)
    return total


def _show_costs(explain: Mapping[str, Any]) -> None:
    """Print predicted beside actual costs."""
    predicted, actual, other = explain["predicted"], explain["actual"], explain["other"]
    shown: dict[str, Callable[[float], str]] = {
        "pairs": lambda value: short(round(value)),
        "bytes": lambda value: f"{value / _MIB:,.1f}",
        "scan_ms": lambda value: f"{value:,.1f}",
    }
    titles = {"pairs": "pairs", "bytes": "MiB visited", "scan_ms": "scans, ms"}
    figures = ("predicted", "actual", "ratio")
    show_table(
        ("", *figures, f"the {other['plan']} plan, predicted"),
        [
            [
                titles[name],
                form(predicted[name]),
                form(actual[name]),
                f"{predicted[name] / actual[name]:.2f}" if actual[name] else "-",
                form(other[name]),
            ]
            for name, form in shown.items()
        ],
        numbers=figures,
        indent=2,
    )


def _show_times(answers: Sequence[SearchResult]) -> None:
    """Print the time of each stage; times of single images are added up."""
    shared = answers[0].timings
    times = {
        "extract ms": sum(result.timings.get("extract", 0.0) for result in answers),
        "plan ms": sum(result.timings.get("plan", 0.0) for result in answers),
        "send and wait ms": shared.get("scan", 0.0),
        "rank ms": shared.get("rank", 0.0),
    }
    titles, cells = list(times), [f"{value:,.1f}" for value in times.values()]
    width = max(len(titles[-1]), len(cells[-1]))
    titles[-1], cells[-1] = titles[-1].rjust(width), cells[-1].rjust(width)
    show_table(titles, [cells], numbers=titles, indent=2)


def _say(text: str) -> None:
    """Print a sentence, wrapped to fit."""
    width = min(terminal_width(), _WIDTH)
    for line in textwrap.wrap(text, width - 2, subsequent_indent="  ", break_long_words=False):
        say(f"  {line}")


def short(number: int) -> str:
    """Return a count with three figures where it is large: ``9,812``, ``61.4 k``, ``1.03 G``."""
    if number < 10_000:
        return f"{number:,}"
    value = float(number)
    for unit in "kMGT":
        value /= 1000
        if value < 999.5 or unit == "T":
            break
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{digits}f} {unit}"
