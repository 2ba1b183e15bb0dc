"""What the demonstration prints and writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from demo.searches import PLANS, TOP, Answer, Row, is_right
from pipeline.config import PlanKind
from pipeline.evaluation.measures import mean, percentile
from pipeline.records import Match
from pipeline.report_html import results_page
from pipeline.text import displayable

PAGE_MATCHES = 5


def views_table(rows: Sequence[Row]) -> Table:
    """Return the table of views: at which rank each plan has the photograph that was changed."""
    table = Table(
        title="Where is the photograph that each view was made from?",
        title_style="bold",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("\nphotograph", no_wrap=True)
    table.add_column("\nview")
    # Rank, score and time in one column a plan: the table must fit a terminal of 80 columns.
    for plan in PLANS:
        table.add_column(f"{plan}\n{_columns('rank', 'score', 'ms')}", no_wrap=True)
    for row in rows:
        name = row.query.title.removesuffix(f", {row.query.change}")
        cells = [_rank_cell(row, plan) for plan in PLANS]
        table.add_row(plain(name), plain(row.query.change), *cells)
    return table


def matches_table(row: Row) -> Table:
    """Return the best matches of one query, plan by plan."""
    table = Table(title=f"Matches of {plain(row.query.title)}", title_style="bold")
    for name, justify in [("plan", "left"), ("rank", "right"), ("score", "right")]:
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("votes", justify="right")
    table.add_column("location", overflow="fold")
    for plan in PLANS:
        answer = row.answers[plan]
        matches = answer.result.matches if answer.result else ()
        if not matches:
            table.add_row(plan, "–", "", "", plain(answer.error or "no match"))
        for match in matches:
            location = " = ".join(match.locations)
            table.add_row(
                plan, str(match.rank), f"{match.score:.3f}", str(match.votes), plain(location)
            )
        table.add_section()
    return table


def summary(rows: Sequence[Row]) -> list[str]:
    """Return a line for each plan: how many were found, how fast, with how much work."""
    return [_plan_summary(rows, plan) for plan in PLANS]


def misses(rows: Sequence[Row]) -> list[str]:
    """Return a line for each view whose photograph did not come first, with its descriptors."""
    lines = []
    for row in rows:
        late = [
            plan
            for plan in PLANS
            if (match := row.answers[plan].right_match(row.query)) is None or match.rank > 1
        ]
        if late:
            results = [answer.result for answer in row.answers.values() if answer.result]
            count = results[0].query.get("descriptors", "?") if results else "no"
            lines.append(
                f"Not first with {' and '.join(late)}: {plain(row.query.title)} "
                f"({count} descriptors in the view)"
            )
    incomplete = sum(
        answer.result is not None and not answer.result.complete
        for row in rows
        for answer in row.answers.values()
    )
    if incomplete:
        lines.append(f"[yellow]{incomplete} answers are incomplete: a group did not answer[/]")
    return lines


def write_page(rows: Sequence[Row], target: Path, note: str) -> None:
    """Write the page of pictures, both plans of a query together."""
    entries = []
    for row in rows:
        for answer in row.answers.values():
            if answer.result is not None:
                trimmed = replace(answer.result, matches=answer.result.matches[:PAGE_MATCHES])
                entries.append((row.query.title, row.query.path, trimmed))
    by_title = {row.query.title: row.query for row in rows}

    def right(title: str, match: Match) -> bool:
        return is_right(by_title[title], match)

    page = results_page(
        entries,
        lambda location: Path(location).read_bytes(),
        heading="Vantage: the demonstration",
        note=note,
        is_right=right,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")


def print_rows(console: Console, rows: Sequence[Row]) -> None:
    """Print the rows as the table that fits them, then the summary."""
    known = [row for row in rows if row.query.answers]
    if known:
        console.print(views_table(known))
    for row in rows:
        if not row.query.answers:
            console.print(matches_table(row))
    for line in [*summary(rows), *misses(known)]:
        console.print(line, soft_wrap=True)


def _rank_cell(row: Row, plan: PlanKind) -> str:
    """Return rank, score and time of the right photograph; a dash when it was not returned."""
    answer = row.answers[plan]
    match = answer.right_match(row.query)
    milliseconds = f"{answer.milliseconds:.0f}"
    if match is None:
        return f"[red]{_columns('–', '', milliseconds)}[/]"
    figures = _columns(str(match.rank), f"{match.score:.3f}", milliseconds)
    complete = answer.result is not None and answer.result.complete
    return f"[{'green' if match.rank == 1 and complete else 'yellow'}]{figures}[/]"


def _columns(rank: str, score: str, milliseconds: str) -> str:
    """Align three figures."""
    return f"{rank:>4} {score:>5} {milliseconds:>5}"


def _plan_summary(rows: Sequence[Row], plan: PlanKind) -> str:
    """Put one plan's figures into a line."""
    answers = [row.answers[plan] for row in rows]
    parts = []
    known = [row for row in rows if row.query.answers]
    if known:
        ranks = [match.rank for row in known if (match := row.answers[plan].right_match(row.query))]
        parts.append(f"{ranks.count(1)} of {len(known)} first")
        parts.append(f"{len(ranks)} among the first {TOP}")
    middle = percentile([answer.milliseconds for answer in answers], 50)
    if middle is not None:
        parts.append(f"median {middle:.0f} ms")
    parts += _work(answers)
    return f"[bold]{plan}[/]: " + ", ".join(parts)


def _work(answers: Sequence[Answer]) -> list[str]:
    """Say how much of the collection was searched, and which plan actually ran."""
    plans = [answer.result.plan for answer in answers if answer.result]
    words = []
    cells = mean([float(p["cells"]) for p in plans if "cells" in p])
    probed = mean([float(p["cells_probed"]) for p in plans if "cells_probed" in p])
    share = mean([float(p["scanned_share"]) for p in plans if "scanned_share" in p])
    if cells is not None and probed is not None:
        words.append(f"{probed:.1f} of {cells:.0f} cells for each descriptor")
    if share is not None:
        words.append(f"{share:.1%} of the descriptor pairs computed")
    ran = sorted({str(p["kind"]) for p in plans if "kind" in p})
    words.append(f"ran as {' and '.join(ran)}" if ran else "no plan ran")
    return words


def plain(text: str) -> str:
    """Return a text that Rich prints as it is, control characters made visible."""
    return escape(displayable(text))
