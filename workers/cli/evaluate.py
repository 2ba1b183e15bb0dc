"""``vantage eval``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from pipeline.config import PlanKind, Settings
from pipeline.errors import InputError
from pipeline.request import SearchRequest
from workers.cli import exits
from workers.cli.options import ExactOption, JsonOption, LocalOption, epilog
from workers.cli.output import counted, say, show_table, to_stderr, write_json
from workers.cli.progress import Bar

if TYPE_CHECKING:
    from pipeline.evaluation import EvaluationReport, Figures
    from workers.evaluating import Reports

EVALUATE_HELP = epilog(
    """
vantage eval photos/
vantage eval photos/ --subsets dvd --plan probed --local
vantage eval photos/ --effort 0.02 --keep
vantage eval photos/ --keep --json > figures.json
vantage eval photos/ --extractor sift --extractor cnn:resnet50.onnx --fuse
""",
    """
The folder holds a groundtruth.json: images, relevant, and optionally database, neutral,
no_match_queries and parts. Its database images are indexed into a temporary collection for each
extractor. In the JSON, "overall" has the figures of all queries and "parts" those of each subset,
by the plan in "plan" and, of several extractors, by the one in "extractor". "plans" has the
figures of every plan, "extractors" those of every extractor; "fused" is all of them together.
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
    exact: ExactOption = False,
    effort: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of the cells that the probed plan opens for each query descriptor. "
            "Default: the square root of the number of cells.",
            show_default=False,
        ),
    ] = None,
    subsets: Annotated[
        str,
        typer.Option(
            "--subsets",
            "--parts",  # its former name, and that of the key in groundtruth.json
            metavar="NAME,NAME...",
            help="Only these subsets: their queries, their right answers, all distractors.",
            show_default=False,
        ),
    ] = "",
    extractor: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Extractor to measure: sift, surf, cnn:FILE or another of `vantage extractors`; "
            "may be given several times. Default: VANTAGE_EXTRACTOR.",
            show_default=False,
        ),
    ] = None,
    fuse: Annotated[
        bool, typer.Option("--fuse", help="Also measure all the extractors together.")
    ] = False,
    top: Annotated[int, typer.Option(min=1, max=10_000, help="Matches asked for a query.")] = _TOP,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the collection, for the next evaluation.")
    ] = False,
    local: LocalOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how well and how fast a data set's queries are answered."""
    from pipeline.evaluation import read_dataset
    from workers.evaluating import Evaluator

    settings = Settings.from_env()
    requests = _requests(plan, SearchRequest(effort=effort, exact=exact, top=top))
    specs = extractor or [settings.extractor_spec]
    _require_different(specs, fuse)
    chosen = read_dataset(dataset).select([name for name in subsets.split(",") if name])
    with Bar() as bar:
        evaluator = Evaluator(
            settings=settings,
            dataset=chosen,
            requests=requests,
            keep=keep,
            local=local,
            on_job=bar.show_job,
            on_query=lambda plan, done, total: bar.show(f"{plan} queries", done, total),
        )
        try:
            found = evaluator.run(specs, fuse=fuse)
        except KeyboardInterrupt:
            raise exits.InterruptError("Interrupted. What was extracted is kept.") from None
    for bad in filter(None, found.unusable):
        to_stderr(f"{counted(bad, 'image')} of the database could not be indexed.")
    for name in found.kept:
        to_stderr(f"Kept as collection {name}.")
    if as_json:
        write_json(_to_dict(found.reports))
    else:
        _show(found.reports)
    if any(report.overall.incomplete for report in _all(found.reports)):
        raise typer.Exit(exits.INCOMPLETE)


def _require_different(specs: Sequence[str], fuse: bool) -> None:
    """Refuse an extractor that is given twice, and fusing one alone."""
    if fuse and len(specs) < 2:
        raise InputError(
            f"--fuse takes at least two extractors, not {len(specs)}; give --extractor again"
        )
    twice = next((spec for spec in specs if list(specs).count(spec) > 1), None)
    if twice is not None:
        raise InputError(f"--extractor {twice!r} is given twice; give different ones")


def _requests(plan: EvaluatedPlan, request: SearchRequest) -> list[SearchRequest]:
    """Return the requests that measure the plans; refuse contradictory options."""
    if plan is not EvaluatedPlan.both:
        return [replace(request, plan=cast("PlanKind", plan.value))]
    if request.exact:
        return [request]
    return [
        replace(request, plan="probed"),
        replace(request, plan="exhaustive", effort=None),
    ]


def _all(reports: Reports) -> list[EvaluationReport]:
    """Return the reports of all extractors and plans."""
    return [report for by_plan in reports.values() for report in by_plan.values()]


def _to_dict(reports: Reports) -> dict[str, Any]:
    """Return the figures of the first extractor and plan at the top, and all by name."""
    by_extractor = {name: _plans_to_dict(by_plan) for name, by_plan in reports.items()}
    first = next(iter(by_extractor))
    if len(by_extractor) == 1:
        return {"extractor": first, **by_extractor[first]}
    return {"extractor": first, **by_extractor[first], "extractors": by_extractor}


def _plans_to_dict(by_plan: Mapping[str, EvaluationReport]) -> dict[str, Any]:
    """Return the figures of the first plan at the top, and all by name."""
    dicts = {plan: report.to_dict() for plan, report in by_plan.items()}
    return {**next(iter(dicts.values())), "plans": dicts}


def _show(reports: Reports) -> None:
    """Print the figures, extractors and plans side by side."""
    several = len(reports) > 1
    first = _all(reports)[0]
    say(
        f"{counted(first.database_images, 'image')} indexed, "
        f"{counted(len(first.outcomes), 'query', 'queries')}, top {first.top}"
    )
    figures = ("mAP", "R@1", "R@10", "R@100", "p50 ms", "p95 ms", "scanned", "queries")
    show_table(
        ("subset", *(["extractor"] if several else []), "plan", *figures),
        [
            [subset or "all", *([name] if several else []), plan, *_row(subset, report)]
            for subset in [*first.subsets, None]
            for name, by_plan in reports.items()
            for plan, report in by_plan.items()
        ],
        numbers=figures,
    )
    for name, by_plan in reports.items():
        for plan, report in by_plan.items():
            values = report.to_dict()
            if values["cells"]:
                say(
                    f"{f'{name}, ' if several else ''}{plan}: {values['cells_probed'] or 0:,.4g} "
                    f"of {values['cells']:,.0f} cells a query descriptor"
                )
    for name, by_plan in reports.items():
        for problem in next(iter(by_plan.values())).to_dict()["errors"]:
            say(f"not searched{f' by {name}' if several else ''}: {problem['error']}")
    incomplete = sum(report.overall.incomplete for report in _all(reports))
    if incomplete:
        say(f"{counted(incomplete, 'answer')} came without some groups.")


def _row(subset: str | None, report: EvaluationReport) -> tuple[str, ...]:
    """Return the figures of one line of the table."""
    figures: Figures = report.overall if subset is None else report.subsets[subset]
    return (
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
