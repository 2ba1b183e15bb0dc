"""``vantage search``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.config import Settings
from pipeline.errors import InputError
from pipeline.records import LATE
from pipeline.request import SearchRequest
from pipeline.text import displayable
from workers.cli import exits
from workers.cli.options import (
    CollectionArgument,
    DeadlineOption,
    EffortOption,
    ExactOption,
    JsonOption,
    LocalOption,
    Plan,
    PlanOption,
    complete_collection,
    epilog,
)
from workers.cli.output import counted, say, show_table, to_stderr, write_json

if TYPE_CHECKING:
    from pipeline.records import FoundBy, FusedResult, Match, SearchResult
    from workers.collection import Collection
    from workers.fused_collection import FusedCollection

SEARCH_HELP = epilog(
    """
vantage search holiday beach.jpg
vantage search holiday *.jpg --top 3 --html answers.html
vantage search holiday beach.jpg --exact --json
vantage search holiday beach.jpg --effort 0.1 --explain
vantage search holiday beach.jpg --fuse holiday-looks
curl -s https://example.org/photo.jpg | vantage search holiday -
""",
    """
Several images are searched for in one pass over the index. Score: 0 to 1, the share of the query's
evidence that an image collects. Votes: how many features of the query match one of the image.
The file that was asked with is first and marked "same file", whatever its score.
With --fuse, the score says how far an image stands out of the noise of all answers together, and
each extractor has a column with its rank and score ("-": the image is not among its best 200, or
has no likeness). Exit code 4: some groups of the index did not answer.
""",
)

_STDIN = "-"


@dataclass(frozen=True)
class Answer:
    """One query: its name, its image, and its answer or error."""

    name: str
    image: bytes | str
    result: SearchResult | FusedResult | None = None
    error: InputError | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: the image, then those of the result, or the error."""
        if self.result is None:
            assert self.error is not None
            return {"image": self.name, "error": self.error.to_dict()}
        return {"image": self.name, **self.result.to_dict()}


def search(
    collection: CollectionArgument,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE",
            help="Image files to search with; - reads one from standard input.",
            show_default=False,
        ),
    ],
    top: Annotated[
        int, typer.Option("--top", "-k", min=1, max=10_000, help="Images in an answer.")
    ] = 10,
    plan: PlanOption = Plan.auto,
    exact: ExactOption = False,
    effort: EffortOption = None,
    deadline: DeadlineOption = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Also print the plan and why, what was visited and compared, the time of each "
            "stage, predicted and actual. (In the JSON it always is.)",
        ),
    ] = False,
    fuse: Annotated[
        list[str] | None,
        typer.Option(
            "--fuse",
            metavar="OTHER",
            help="Rank together with another collection of the same images, made with another "
            "extractor; may be given several times.",
            autocompletion=complete_collection,
            show_default=False,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="Also write a page that shows the pictures.",
            show_default=False,
        ),
    ] = None,
    local: LocalOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find the images of a collection that show the same thing as a photograph."""
    settings = Settings.from_env()
    request = SearchRequest(
        top=top, plan=plan.value, effort=effort, exact=exact, deadline_s=deadline
    )
    if html is not None and not html.absolute().parent.is_dir():
        raise InputError(f"the page cannot be written: there is no folder {str(html.parent)!r}")
    from pipeline.decoders import start_early

    # It starts in parallel with the rest.
    start_early()
    from pipeline.retrieval.batch import BATCH_IMAGES

    # Only once: standard input is exhausted after that, however often it is named.
    piped = sys.stdin.buffer.read() if _STDIN in images else b""
    from workers.fused_collection import open_collections

    with open_collections([collection, *(fuse or [])], settings, local=local) as searcher:
        answers: list[Answer] = []
        for first in range(0, len(images), BATCH_IMAGES):
            together = _ask(searcher, images[first : first + BATCH_IMAGES], request, piped)
            answers += together
            _tell(together, as_json, explain)
    if html is not None:
        from pipeline.report_html import write_page

        searches = [
            (answer.name, answer.image, answer.result) for answer in answers if answer.result
        ]
        heading = f"Searches in {' and '.join([collection, *(fuse or [])])}"
        write_page(html, searches, settings.image_limits, heading=heading)
        to_stderr(f"Wrote {html}")
    if as_json:
        fused = {"fused_with": fuse} if fuse else {}
        shown = [answer.to_dict() for answer in answers]
        write_json({"collection": collection, **fused, "searches": shown})
    _leave(answers)


def _ask(
    searcher: Collection | FusedCollection,
    images: Sequence[str],
    request: SearchRequest,
    piped: bytes,
) -> list[Answer]:
    """Search for several images in one pass, `piped` for each ``-``; a bad image gets an error."""
    names = ["standard input" if image == _STDIN else image for image in images]
    sources: list[bytes | str] = [piped if image == _STDIN else image for image in images]
    found = searcher.search_many(sources, request)
    return [
        Answer(name, source, error=result)
        if isinstance(result, InputError)
        else Answer(name, source, result)
        for name, source, result in zip(names, sources, found, strict=True)
    ]


def _tell(answers: Sequence[Answer], as_json: bool, explain: bool) -> None:
    """Print the answers of one pass; errors always, answers only without --json."""
    for answer in answers:
        if answer.error is not None:
            exits.tell(str(answer.error))
        elif not as_json:
            _show(answer)
    if explain and not as_json:
        from workers.cli.explain import show_explanations

        show_explanations([answer.result for answer in answers if answer.result is not None])


def _show(answer: Answer) -> None:
    """Print one answer for users."""
    from pipeline.records import FusedResult

    result = answer.result
    if result is None:
        return
    answers = result.answers if isinstance(result, FusedResult) else (result,)
    query = answers[0].query
    features = " + ".join(f"{one.query['descriptors']:,}" for one in answers)
    say(
        f"{displayable(answer.name)}: {query['width']} x {query['height']} pixels, "
        f"{features} feature{'' if features == '1' else 's'}"
    )
    if not result.matches:
        answered = result.complete or any(one.plan.get("scanned_share") for one in answers)
        late = any(LATE in cause for one in answers for cause in one.causes)
        nothing = "nothing could be searched in time" if late else "nothing could be searched"
        say("  nothing similar was found" if answered else f"  {nothing}")
    elif isinstance(result, FusedResult):
        _show_fused(result)
    else:
        show_table(
            ("#", "score", "votes", "location"),
            [(m.rank, f"{m.score:.3f}", f"{m.votes:,}", _places(m)) for m in result.matches],
            numbers=("#", "score", "votes"),
            indent=2,
        )
    if isinstance(result, FusedResult):
        for label, one in zip(result.labels, answers, strict=True):
            say(f"  {displayable(label)}: {describe(one)}")
        _show_causes(answers)
        say("")
    else:
        say(f"  {describe(result)}")
        _show_causes(answers)
        say("")


def _show_fused(result: FusedResult) -> None:
    """Print the images that several collections found, with the rank and score of each."""
    show_table(
        ("#", "score", *result.labels, "location"),
        [
            (m.rank, f"{m.score:.3f}", *(_said(found) for found in m.found_by), _places(m))
            for m in result.matches
        ],
        numbers=("#", "score", *result.labels),
        indent=2,
    )


def _said(found: FoundBy) -> str:
    """Return a collection's rank and score of an image, as ``3: 0.412``."""
    if found.rank is None:
        return "-" if found.indexed else "not indexed"
    return f"{found.rank}: {found.score:.3f}"


def _places(match: Match) -> str:
    """Return the first location of a match, what it is, and how many more there are."""
    first = match.locations[0] if match.locations else f"(no file left) {match.image[:12]}"
    about = ["same file"] if match.same_file else []
    about += [state for state in match.location_states[:1] if state != "present"]
    if len(match.locations) > 1:
        gone = match.location_states[1:].count("gone")
        more = f"+{len(match.locations) - 1} more"
        about.append(f"{more}, {gone} of them gone" if gone else more)
    return f"[{', '.join(about)}] {first}" if about else first


def describe(result: SearchResult) -> str:
    """Return which plan ran, how much it computed, how long it took, and what is missing."""
    plan = result.plan
    if "error" in result.query:
        return f"not searched further: {displayable(result.query['error']['message'])}"
    if not plan:
        return "found no keypoint in the query"
    cells = (
        f"{plan['cells_probed']:,} of {plan['cells']:,} cells, " if plan["kind"] == "probed" else ""
    )
    whole = "complete" if result.complete else f"INCOMPLETE: {_lacks(result)}"
    return (
        f"{plan['kind']} plan, {cells}{plan['scanned_share']:.1%} scanned, "
        f"{sum(result.timings.values()):,.0f} ms{_shared(result)}, {whole}"
    )


def _lacks(result: SearchResult) -> str:
    """Say in a few words what an incomplete answer lacks."""
    if not result.missing_groups:
        return "files of the index cannot be read"
    return f"no answer from group {', '.join(map(str, result.missing_groups))}"


def _show_causes(answers: Sequence[SearchResult]) -> None:
    """Print why answers are not complete."""
    for cause in dict.fromkeys(cause for one in answers for cause in one.causes):
        say(f"  - {displayable(cause)}")


def _shared(result: SearchResult) -> str:
    """Return how many other images shared the time."""
    others = result.explain.get("images", 1) - 1
    return f" with {counted(others, 'other image')}" if others else ""


def _leave(answers: list[Answer]) -> None:
    """Exit with the code for these answers."""
    if any(answer.error for answer in answers):
        raise typer.Exit(exits.USAGE)
    if not all(answer.result and answer.result.complete for answer in answers):
        raise typer.Exit(exits.INCOMPLETE)
