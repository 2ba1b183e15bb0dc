"""Reader of an evaluation data set: a folder of images with a ``groundtruth.json``.

The file is one JSON object; every path in it is relative to the folder, with ``/`` between folders.

``images``
    List of every image of the data set.
``relevant``
    Object: query image -> list of the images that are right answers to it.
``database`` (optional)
    List of the images that are indexed.
``neutral`` (optional)
    Object: query image -> list of images that are neither right nor wrong answers to it.
``no_match_queries`` (optional)
    List of queries to which the right answer is "nothing".
``parts`` (optional)
    Object: name of a subset -> object, which may have ``queries`` (list of queries), ``images``
    (list of images) or ``prefixes`` (list of leading folders). A number in their place is taken for
    a count and ignored; so are all other keys.

What is right, wrong and neither
--------------------------------
1. *Database.* Without ``database``, everything is indexed except the photographs that are queries
   and never an answer: an image is left out when it is a query (or a no-match query) and no query
   has it as relevant. Queries from the same folder as their answers are therefore indexed, phone
   photographs of reference covers are not.
2. *Relevant.* An image is right for a query when ``relevant`` lists it, it is indexed, and it is
   not the query itself. A query with no right answer left is an error.
3. *Neutral* (called "junk" in the Oxford buildings and Holidays protocols). The query itself is
   always neutral to itself. Beyond that, with ``neutral`` exactly what it lists; without it, every
   image that shares a right answer with the query (another photograph of the same cover) and is
   not itself right. An image that is both relevant and neutral is relevant.
4. *Wrong* is everything else.

Neutral images are taken out of a ranking before anything is measured: they neither use up a rank
nor count as found.

A query belongs to the first subset (in the file's order) whose ``queries`` or ``images`` list it or
whose ``prefixes`` it starts with, else to the subset named by its first folder, else to ``"all"``.
"""

from __future__ import annotations

import difflib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import InputError, UnknownNameError

GROUND_TRUTH_NAME = "groundtruth.json"

_KEYS = ("images", "relevant", "database", "neutral", "no_match_queries", "parts")
_TOP_SUBSET = "all"


@dataclass(frozen=True)
class EvaluationQuery:
    """One query and its right answers.

    Attributes
    ----------
    path : str
        Image of the query, relative to the data set's folder.
    subset : str
        The subset of the data set that it is measured with.
    relevant : frozenset of str
        Right answers, all of them indexed. Empty for a no-match query.
    neutral : frozenset of str
        Images neither right nor wrong, the query itself among them.
    """

    path: str
    subset: str
    relevant: frozenset[str]
    neutral: frozenset[str]

    @property
    def expects_nothing(self) -> bool:
        """Whether the right answer is that nothing matches."""
        return not self.relevant


@dataclass(frozen=True)
class Dataset:
    """An evaluation data set; paths are relative to its folder.

    Attributes
    ----------
    root : Path
        The folder.
    database : tuple of str
        Images that are indexed, sorted.
    queries : tuple of EvaluationQuery
        In the order of the file.
    distractors : frozenset of str
        Indexed images that are neither a query nor right for any query.
    """

    root: Path
    database: tuple[str, ...]
    queries: tuple[EvaluationQuery, ...]
    distractors: frozenset[str]

    @property
    def subsets(self) -> tuple[str, ...]:
        """Names of the subsets, in the order of their first query."""
        return tuple(dict.fromkeys(query.subset for query in self.queries))

    def file(self, path: str) -> Path:
        """Return where an image of the data set lies."""
        return self.root / path

    def database_files(self) -> list[Path]:
        """Return the files to index."""
        return [self.file(path) for path in self.database]

    def select(self, subsets: Sequence[str]) -> Dataset:
        """Return the data set of some subsets: their queries, their right answers, all distractors.

        Parameters
        ----------
        subsets : sequence of str
            Names of subsets; none means all.

        Raises
        ------
        UnknownNameError
            The data set has no subset of that name.
        """
        for name in subsets:
            if name not in self.subsets:
                raise UnknownNameError("subset of the data set", name, list(self.subsets))
        if not subsets:
            return self
        queries = tuple(query for query in self.queries if query.subset in subsets)
        wanted = self.distractors.union(*(query.relevant | query.neutral for query in queries))
        return replace(
            self,
            queries=queries,
            database=tuple(path for path in self.database if path in wanted),
        )


def read_dataset(folder: str | os.PathLike[str]) -> Dataset:
    """Read the ``groundtruth.json`` of a folder; see the module's docstring for the rules.

    Parameters
    ----------
    folder : str or path
        The folder, or the ``groundtruth.json`` in it.

    Returns
    -------
    Dataset

    Raises
    ------
    InputError
        The folder or file is missing, is not JSON, a key or value is not of the stated form, a
        path leads out of the folder or to no file, or a query has no right answer that is indexed.
        The message names the file, the key and the value.
    """
    path = Path(folder).expanduser()
    if path.name == GROUND_TRUTH_NAME and not path.is_dir():
        path = path.parent
    root = path.absolute()
    return _Reader(root, _load(root)).dataset()


def _load(root: Path) -> dict[str, Any]:
    """Read the JSON object of the folder."""
    file = root / GROUND_TRUTH_NAME
    if not root.is_dir():
        raise InputError(f"{str(root)!r} is not a folder; name one that holds {GROUND_TRUTH_NAME}")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"the folder {str(root)!r} has no {GROUND_TRUTH_NAME}; an evaluation data set needs one"
        ) from None
    except OSError as error:
        raise InputError(f"{str(file)!r} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{str(file)!r} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{str(file)!r} must be a JSON object, not {_kind(values)}")
    return values


class _Reader:
    """Checks the values of one ground truth file and builds the data set."""

    def __init__(self, root: Path, values: dict[str, Any]) -> None:
        self.root = root
        self.file = root / GROUND_TRUTH_NAME
        self.values = values
        for key in values:
            if key not in _KEYS:
                near = difflib.get_close_matches(key, _KEYS, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_KEYS)}"
                raise self.error(f"key {key!r} is not known; {hint}")
        for key in ("images", "relevant"):
            if key not in values and not (key == "relevant" and values.get("no_match_queries")):
                raise self.error(f"key {key!r} is missing")
        self.images = self.paths("images", values["images"])
        self.known = frozenset(self.images)
        self.subsets = self.read_subsets()

    def dataset(self) -> Dataset:
        """Apply the rules of the module's docstring."""
        relevant = self.lists("relevant")
        no_match = self.paths("no_match_queries", self.values.get("no_match_queries", []))
        for query in no_match:
            if relevant.get(query):
                raise self.error(
                    f"{query!r} is in 'no_match_queries' and has relevant images; choose one"
                )
        expects_nothing = frozenset(no_match)
        asked = dict.fromkeys([*(q for q in relevant if q not in expects_nothing), *no_match])
        if not asked:
            raise self.error("there is no query: 'relevant' and 'no_match_queries' are empty")
        answers = {query: frozenset(relevant.get(query, ())) - {query} for query in asked}
        everywhere = frozenset().union(*answers.values())
        database = self.database(asked, everywhere)
        self.check_known("relevant", everywhere)
        self.check_files([*database, *asked])
        neutral = self.neutral(answers)
        indexed = frozenset(database)
        queries = []
        for query, right in answers.items():
            if not right & indexed and query not in expects_nothing:
                raise self.error(
                    f"query {query!r} has no relevant image that is indexed; list one in "
                    "'relevant' and 'database', or the query in 'no_match_queries'"
                )
            queries.append(
                EvaluationQuery(
                    path=query,
                    subset=self.subset(query),
                    relevant=right & indexed,
                    neutral=((neutral[query] - right) | {query}) & (indexed | {query}),
                )
            )
        return Dataset(
            root=self.root,
            database=database,
            queries=tuple(queries),
            distractors=indexed - everywhere - frozenset(asked),
        )

    def database(self, asked: Mapping[str, None], everywhere: frozenset[str]) -> tuple[str, ...]:
        """Rule 1."""
        if "database" in self.values:
            listed = self.paths("database", self.values["database"])
            self.check_known("database", listed)
        else:
            listed = [p for p in self.images if p not in asked or p in everywhere]
        if not listed:
            raise self.error("no image is left to index; list some in 'database'")
        return tuple(sorted(listed))

    def neutral(self, answers: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
        """Rule 3, before right answers are taken out."""
        if "neutral" in self.values:
            listed = self.lists("neutral")
            for query in listed:
                if query not in answers:
                    raise self.error(f"'neutral' has {query!r}, which is not a query")
                self.check_known(f"neutral of {query!r}", listed[query])
            return {query: frozenset(listed.get(query, ())) for query in answers}
        asking: dict[str, set[str]] = defaultdict(set)
        for query, right in answers.items():
            for image in right:
                asking[image].add(query)
        return {
            query: frozenset().union(*(asking[image] for image in right))
            for query, right in answers.items()
        }

    def subset(self, query: str) -> str:
        """Return the name of the subset that a query belongs to."""
        for name, listed, prefixes in self.subsets:
            if query in listed or any(_starts_with(query, prefix) for prefix in prefixes):
                return name
        first, slash, _ = query.partition("/")
        return first if slash else _TOP_SUBSET

    def read_subsets(self) -> list[tuple[str, frozenset[str], list[str]]]:
        """Return (name, listed queries, prefixes) of each subset."""
        subsets = self.values.get("parts", {})
        if not isinstance(subsets, dict):
            raise self.error(f"'parts' must be an object, not {_kind(subsets)}")
        found = []
        for name, subset in subsets.items():
            if not isinstance(subset, dict):
                raise self.error(f"subset {name!r} must be an object, not {_kind(subset)}")
            lists = {
                key: self.paths(f"{key} of subset {name!r}", subset[key])
                for key in ("queries", "images", "prefixes")
                if key in subset and not isinstance(subset[key], int | float)
            }
            listed = frozenset([*lists.get("queries", []), *lists.get("images", [])])
            found.append((name, listed, lists.get("prefixes", [])))
        return found

    def lists(self, key: str) -> dict[str, list[str]]:
        """Check an object of lists of paths."""
        values = self.values.get(key, {})
        if not isinstance(values, dict):
            raise self.error(f"{key!r} must be an object of lists, not {_kind(values)}")
        self.paths(f"queries of {key!r}", list(values))
        return {query: self.paths(f"{key} of {query!r}", paths) for query, paths in values.items()}

    def paths(self, where: str, values: object) -> list[str]:
        """Check a list of distinct relative paths inside the folder."""
        if not isinstance(values, list):
            raise self.error(f"{where} must be a list of paths, not {_kind(values)}")
        for value in values:
            if not isinstance(value, str) or not value:
                raise self.error(f"{where} has {value!r}; each entry must be a path")
            pure = PurePosixPath(value)
            if pure.is_absolute() or ".." in pure.parts or "\0" in value:
                raise self.error(f"{where} has {value!r}; paths must stay inside the folder")
        twice = [value for value, count in Counter(values).items() if count > 1]
        if twice:
            raise self.error(f"{where} has {twice[0]!r} twice")
        return values

    def check_known(self, where: str, paths: Iterable[str]) -> None:
        """Refuse a path that ``images`` does not list."""
        for path in sorted(set(paths) - self.known):
            near = difflib.get_close_matches(path, self.images, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "add it there"
            raise self.error(f"{where} has {path!r}, which 'images' does not list; {hint}")

    def check_files(self, paths: Iterable[str]) -> None:
        """Refuse a path without a file."""
        missing = [path for path in paths if not (self.root / path).is_file()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise self.error(f"no file lies at {missing[0]!r}{more} in {str(self.root)!r}")

    def error(self, sentence: str) -> InputError:
        """Return an error that names the file."""
        return InputError(f"{str(self.file)!r}: {sentence}")


def _starts_with(path: str, prefix: str) -> bool:
    """Whether a path begins with the folders of the prefix."""
    leading = PurePosixPath(prefix).parts
    return PurePosixPath(path).parts[: len(leading)] == leading


def _kind(value: object) -> str:
    """Name a JSON value's type for users."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return names.get(type(value), "null" if value is None else "a number")
