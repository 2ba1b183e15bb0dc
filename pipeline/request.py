"""The options of a search, as one value from the command line down to the plan.

A new option is a field of `SearchRequest` and a key of `SearchOptions`, and appears in no other
signature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict, get_args

from pipeline.config import Config, PlanKind
from pipeline.errors import ConfigError, InputError

__all__ = ["SearchOptions", "SearchRequest", "request_of"]


class SearchOptions(TypedDict, total=False):
    """The keyword options of a search: the fields of `SearchRequest`, each of them optional."""

    top: int
    plan: PlanKind
    effort: float | None
    exact: bool
    deadline_s: float | None


@dataclass(frozen=True, kw_only=True)
class SearchRequest(Config):
    """The options of one search.

    Parameters
    ----------
    top : int
        Images in the answer.
    plan : {"auto", "probed", "exhaustive"}
        ``exhaustive`` compares every query descriptor with every row; ``probed`` only with the rows
        of the nearest cells; ``auto`` takes the exhaustive plan if it is fast enough.
    effort : float, optional
        Share of the cells that the probed plan opens for each query descriptor; asks for that plan.
        Default: the square root of the number of cells (`pipeline.index.cells.cells_by_default`).
    exact : bool
        Compare with every row: asks for the exhaustive plan.
    deadline_s : float, optional
        Seconds after which the answer is made from the groups that have answered. Default: from the
        settings.

    Raises
    ------
    ConfigError
        A value is out of range.
    InputError
        Options contradict each other.

    Examples
    --------
    >>> SearchRequest(effort=0.1).kind
    'probed'
    """

    top: int = 10
    plan: PlanKind = "auto"
    effort: float | None = None
    exact: bool = False
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.top, int) or not 1 <= self.top <= 10_000:
            raise ConfigError("top", self.top, "must be a whole number from 1 to 10000")
        if self.plan not in get_args(PlanKind):
            raise ConfigError("plan", self.plan, "must be auto, probed or exhaustive")
        if self.effort is not None and not (_is_number(self.effort) and 0 < self.effort <= 1):
            raise ConfigError("effort", self.effort, "must be above 0 and at most 1")
        if not isinstance(self.exact, bool):
            raise ConfigError("exact", self.exact, "must be True or False")
        if self.deadline_s is not None and not (
            _is_number(self.deadline_s) and self.deadline_s > 0
        ):
            raise ConfigError("deadline_s", self.deadline_s, "must be above 0 seconds")
        self._refuse_contradictions()

    def _refuse_contradictions(self) -> None:
        if self.exact and self.effort is not None:
            raise InputError(
                f"exact compares with every row, an effort of {self.effort:g} with the rows of "
                "that share of the cells; ask for one of the two"
            )
        if self.exact and self.plan == "probed":
            raise InputError(
                "exact asks for the exhaustive plan, and the plan asked for is probed; "
                "ask for one of the two"
            )
        if self.effort is not None and self.plan == "exhaustive":
            raise InputError(
                "the exhaustive plan compares with every row and takes no effort "
                f"(of {self.effort:g}); leave out one of the two"
            )

    @property
    def kind(self) -> PlanKind:
        """The plan that all options together ask for."""
        if self.exact:
            return "exhaustive"
        return "probed" if self.effort is not None else self.plan

    def seconds(self, default: float) -> float:
        """Return the seconds until the answer is due.

        Parameters
        ----------
        default : float
            Used if the request has none.
        """
        return default if self.deadline_s is None else self.deadline_s


def request_of(request: SearchRequest | None, options: SearchOptions) -> SearchRequest:
    """Return a request, changed by keyword options.

    Raises
    ------
    InputError
        It is no request.
    ConfigError
        There is no such option, or its value is out of range.
    """
    if request is None:
        return SearchRequest.from_dict(options)
    if not isinstance(request, SearchRequest):
        raise InputError(f"{request!r} is no SearchRequest; name the option, as in top=10")
    return SearchRequest.from_dict({**request.to_dict(), **options})


def _is_number(value: object) -> bool:
    """Whether a value is a finite number (True and False are not)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value - value == 0
