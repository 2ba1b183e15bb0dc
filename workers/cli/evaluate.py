"""``vantage eval``."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.config import Settings, digest
from pipeline.errors import StateError, UnknownNameError
from workers.cli import exits
from workers.cli.indexing import do_by_workers, do_locally
from workers.cli.metadata import metadata_engine
from workers.cli.options import JsonOption, LocalOption, epilog
from workers.cli.output import counted, say, show_table, to_stderr, write_json
from workers.cli.progress import Bar
from workers.cli.search import Searcher, open_collection

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from pipeline.evaluation import Dataset, EvaluationReport, Figures
    from pipeline.records import SearchResult

HELP = epilog(
    """
vantage eval photos/
vantage eval photos/ --parts dvd --plan probed --local
vantage eval photos/ --keep --json > figures.json
""",
    """
The folder holds a groundtruth.json: images, relevant, and optionally database, neutral,
no_match_queries and parts. Its database images are indexed into a temporary collection. In the
JSON, "overall" and "parts" are those of the plan named in "plan"; "plans" has every plan's.
""",
)

_TOP = 200


class EvaluatedPlan(StrEnum):
    """Plans to measure."""

    both = "both"
    probed = "probed"
    exhaustive = "exhaustive"
    auto = "auto"


def evaluate(
    dataset: Annotated[
        Path,
        typer.Argument(
            metavar="DATASET", help="Folder with a groundtruth.json.", show_default=False
        ),
    ],
    plan: Annotated[EvaluatedPlan, typer.Option(help="Plans to measure.")] = EvaluatedPlan.both,
    parts: Annotated[
        str,
        typer.Option(
            metavar="NAME,NAME...",
            help="Only the queries of these parts; their answers and all distractors are indexed.",
            show_default=False,
        ),
    ] = "",
    top: Annotated[int, typer.Option(min=1, max=10_000, help="Matches asked for a query.")] = _TOP,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the collection, for the next evaluation.")
    ] = False,
    local: LocalOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how well and how fast a data set's queries are answered."""
    from pipeline.evaluation import read_dataset

    settings = Settings.from_env()
    chosen = read_dataset(dataset).select([name for name in parts.split(",") if name])
    plans = ["probed", "exhaustive"] if plan is EvaluatedPlan.both else [plan.value]
    with (
        metadata_engine(settings) as engine,
        _evaluation_collection(settings, engine, chosen, keep) as name,
    ):
        work = do_locally if local else do_by_workers
        try:
            progress = work(settings, engine, name, chosen.database_files())
        except exits.InterruptError:
            # Its own sentence promises a job that goes on; this collection is about to go.
            raise exits.InterruptError("Interrupted. What was extracted is kept.") from None
        if progress.state != "done":
            raise StateError(f"job {progress.job_id} is {progress.state}: {progress.message}")
        bad = progress.counters.get("images_failed", 0) + progress.counters.get("unreadable", 0)
        if bad:
            to_stderr(f"{counted(bad, 'image')} of the database could not be indexed.")
        with open_collection(name, settings, local) as searcher:
            reports = {kind: _run(searcher, chosen, kind, top) for kind in plans}
    if as_json:
        write_json(_to_dict(reports))
    else:
        _show(reports)
    if any(report.overall.incomplete for report in reports.values()):
        raise typer.Exit(exits.INCOMPLETE)


@contextmanager
def _evaluation_collection(
    settings: Settings, engine: Engine, dataset: Dataset, keep: bool
) -> Iterator[str]:
    """Name the collection to use; delete it afterwards unless it is to be, or was, kept.

    Features are found again by their content, so that a second evaluation is quick either way.
    """
    from pipeline.metadata.collections import delete_collection
    from pipeline.metadata.engine import session_scope
    from workers.cli.metadata import collection_names

    identity = [str(dataset.root), list(dataset.database)]
    configs = [settings.extractor.to_dict(), settings.index.to_dict()]
    kept = f"eval-{digest(identity, configs)[:12]}"
    if keep or kept in collection_names(settings):
        yield kept
        to_stderr(f"Kept as collection {kept}.")
        return
    # Two evaluations at once must not delete each other's.
    temporary = f"{kept}-{uuid.uuid4().hex[:6]}"
    try:
        yield temporary
    finally:
        try:
            with session_scope(engine) as session:
                delete_collection(session, temporary)
        except UnknownNameError:
            pass  # it was not even made


def _run(searcher: Searcher, dataset: Dataset, plan: str, top: int) -> EvaluationReport:
    """Search with every query by one plan."""
    from pipeline.evaluation import run_evaluation

    def ask(query: Path) -> SearchResult:
        return searcher.search(query, top=top, plan=plan)  # type: ignore[arg-type]

    with Bar() as bar:
        return run_evaluation(
            dataset,
            ask,
            plan=plan,
            top=top,
            progress=lambda done, total: bar.show(f"{plan} queries", done, total),
        )


def _to_dict(reports: dict[str, EvaluationReport]) -> dict[str, Any]:
    """Return the first plan's figures at the top, and every plan's by its name."""
    dicts = {plan: report.to_dict() for plan, report in reports.items()}
    return {**next(iter(dicts.values())), "plans": dicts}


def _show(reports: dict[str, EvaluationReport]) -> None:
    """Print the figures, the plans side by side."""
    first = next(iter(reports.values()))
    say(
        f"{counted(first.database_images, 'image')} indexed, "
        f"{counted(len(first.outcomes), 'query', 'queries')}, top {first.top}"
    )
    show_table(
        ("part", "plan", "mAP", "R@1", "R@10", "R@100", "p50 ms", "p95 ms", "scanned", "queries"),
        [
            row
            for part in [*first.parts, None]
            for plan, report in reports.items()
            for row in [_row(part, plan, report)]
        ],
        numbers=("mAP", "R@1", "R@10", "R@100", "p50 ms", "p95 ms", "scanned", "queries"),
    )
    for plan, report in reports.items():
        values = report.to_dict()
        say(
            f"{plan}: {values['cells_probed'] or 0:,.4g} of {values['cells'] or 0:,.0f} cells a "
            "query descriptor"
        )
    for problem in first.to_dict()["errors"]:
        say(f"not searched: {problem['error']}")
    incomplete = sum(report.overall.incomplete for report in reports.values())
    if incomplete:
        say(f"{counted(incomplete, 'answer')} came without some groups.")


def _row(part: str | None, plan: str, report: EvaluationReport) -> tuple[str, ...]:
    """Return one line of the table."""
    figures: Figures = report.overall if part is None else report.parts[part]
    return (
        "all" if part is None else part,
        plan,
        _share(figures.mean_average_precision),
        *(_share(figures.recall[k]) for k in (1, 10, 100)),
        _number(figures.p50_ms),
        _number(figures.p95_ms),
        "-" if figures.scanned_share is None else f"{figures.scanned_share:.1%}",
        str(figures.queries + figures.no_match_queries),
    )


def _share(value: float | None) -> str:
    """Return ``0.979``."""
    return "-" if value is None else f"{value:.3f}"


def _number(value: float | None) -> str:
    """Return ``43``."""
    return "-" if value is None else f"{value:,.0f}"
