"""Errors of Vantage, one tree for every layer.

::

    VantageError
      ConfigError(ValueError)        a setting is wrong: stop at start
      InputError(ValueError)         the input is wrong: never retried, recorded as data
        ImageReadError
        NoFeaturesError
        UnknownNameError
      StateError                     something must be repaired first
        IndexNotBuiltError
        SchemaVersionError
        MissingRootError
        CorruptFileError
          LostFileError
          NewerFormatError
          DamagedIndexError
        NoWorkersError
        OtherInstallationError
      TransientError                 retried with backoff
        StorageUnavailableError
        DatabaseUnavailableError
        BrokerUnavailableError
        DeadlinePassedError
        DecoderUnavailableError
        TooManyQueriesError

Every constructor takes positional arguments and hands all of them to ``super().__init__``, so that
an error survives pickling and Celery's JSON (which rebuilds an error as ``cls(*args)``);
``__str__`` makes the message: what happened, the value, what to do next.
"""

from __future__ import annotations

import difflib

__all__ = [
    "BrokerUnavailableError",
    "ConfigError",
    "CorruptFileError",
    "DamagedIndexError",
    "DatabaseUnavailableError",
    "DeadlinePassedError",
    "DecoderUnavailableError",
    "ImageReadError",
    "IndexNotBuiltError",
    "InputError",
    "LostFileError",
    "MissingRootError",
    "NewerFormatError",
    "NoFeaturesError",
    "NoWorkersError",
    "OtherInstallationError",
    "SchemaVersionError",
    "StateError",
    "StorageUnavailableError",
    "TooManyQueriesError",
    "TransientError",
    "UnknownNameError",
    "UnreadableFileError",
    "VantageError",
]


class VantageError(Exception):
    """Base of every error that Vantage raises on purpose."""

    def to_dict(self) -> dict[str, str]:
        """Return type, message and, of an image's error, the code."""
        values = {"type": type(self).__name__, "message": str(self)}
        code = getattr(self, "code", None)
        return values if code is None else {**values, "code": str(code)}


class ConfigError(VantageError, ValueError):
    """A setting is wrong: name of the setting, its value, what is allowed."""

    def __init__(self, setting: str, value: object, allowed: str) -> None:
        super().__init__(setting, value, allowed)

    def __str__(self) -> str:
        setting, value, allowed = self.args
        return f"{setting} is {value!r}: {allowed}"


class InputError(VantageError, ValueError):
    """The caller's input is wrong; trying again cannot help."""


class ImageReadError(InputError):
    """An image cannot be read: its path, a machine-readable code, a sentence.

    The code is one of `pipeline.images.FAILURE_CODES`.
    """

    def __init__(self, path: str, code: str, sentence: str) -> None:
        super().__init__(path, code, sentence)

    @property
    def code(self) -> str:
        """Machine-readable reason."""
        return str(self.args[1])

    @property
    def sentence(self) -> str:
        """Reason for people, without the path."""
        return str(self.args[2])

    def __str__(self) -> str:
        path, code, sentence = self.args
        return f"cannot read {path!r}: {sentence} [{code}]"


class NoFeaturesError(InputError):
    """An image has nothing that the extractor could describe: its name, the extractor, why."""

    code = "no-features"

    def __init__(
        self, path: str, extractor: str, cause: str = "too small, or one flat colour"
    ) -> None:
        super().__init__(path, extractor, cause)

    @property
    def sentence(self) -> str:
        """Reason for people, without the path."""
        _, extractor, cause = self.args
        return f"the {extractor} extractor found no keypoint in it ({cause})"

    def __str__(self) -> str:
        return f"{self.args[0]!r} cannot be used: {self.sentence}"


class UnknownNameError(InputError):
    """A name is not known: the kind of thing, the name, the names that are known."""

    def __init__(self, kind: str, name: str, known: list[str]) -> None:
        super().__init__(kind, name, list(known))

    def __str__(self) -> str:
        kind, name, known = self.args
        near = difflib.get_close_matches(name, known, n=1)
        if near:
            return f"no {kind} is named {name!r}; did you mean {near[0]!r}?"
        listing = ", ".join(repr(item) for item in known[:10]) if known else "there are none yet"
        return f"no {kind} is named {name!r} (known: {listing})"


class StateError(VantageError):
    """The system is in a state that must be repaired: a sentence that says which and how."""


class IndexNotBuiltError(StateError):
    """A collection has no searchable image yet: its name."""

    def __init__(self, collection: str) -> None:
        super().__init__(collection)

    def __str__(self) -> str:
        name = self.args[0]
        return (
            f"collection {name!r} has no searchable image yet; add some with "
            f"`vantage index {name} FOLDER` and see `vantage status {name}`"
        )


class SchemaVersionError(StateError):
    """The database's schema is not this program's: the revision found, the revision expected."""

    def __init__(self, found: str | None, expected: str) -> None:
        super().__init__(found, expected)

    def __str__(self) -> str:
        found, expected = self.args
        remedy = "run `vantage migrate`"
        # Revisions are numbers of four digits.
        if found is not None and found > expected:
            remedy = "a newer release made it: install a newer Vantage"
        return (
            f"the database is at schema {found or 'none'}, this program needs {expected}; {remedy}"
        )


class MissingRootError(StateError):
    """A folder of images is missing as a whole: its path."""

    def __init__(self, root: str) -> None:
        super().__init__(root)

    def __str__(self) -> str:
        return (
            f"the image folder {self.args[0]!r} is missing; mount or restore it, "
            "the job then goes on"
        )


_REBUILD = "`vantage rebuild COLLECTION` makes it again, while everything runs"
_REMEDIES = {
    "groups": _REBUILD,
    "trees": _REBUILD,
    "containers": (
        "take it from a backup, or have the photographs read again: `vantage rebuild COLLECTION "
        "--extractor NAME`"
    ),
    "models": (
        "take it from a backup, or run `vantage index COLLECTION FOLDER --extractor NAME:FILE` "
        "with the same model file"
    ),
    "assignments": "the same command makes it again",
}
_OTHER_REMEDY = "`vantage verify` compares every file and says what to do"
_MESSAGE_REMEDY = "try again"


def file_remedy(path: str) -> str:
    """Say how to get a file of the store back, by the folder in its path; or a message."""
    folders = [part for part in path.replace("\\", "/").split("/")[:-1] if part in _REMEDIES]
    other = _OTHER_REMEDY if "/" in path else _MESSAGE_REMEDY
    return _REMEDIES[folders[-1]] if folders else other


class CorruptFileError(StateError):
    """A stored file is damaged: its path or key, what is wrong."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)

    def __str__(self) -> str:
        path, reason = self.args
        return f"the stored file {path!r} is damaged ({reason}); {file_remedy(path)}"


class LostFileError(CorruptFileError):
    """The store answers, but has no such file: its path, what the system says."""

    def __str__(self) -> str:
        path, reason = self.args
        return f"the store has lost the file {path!r} ({reason}); {file_remedy(path)}"


class UnreadableFileError(CorruptFileError):
    """The store answers, but does not give this file: its path, what the system says.

    It may be sound: a moment later, or for another user, it can be read.
    """

    def __str__(self) -> str:
        path, reason = self.args
        return f"the stored file {path!r} cannot be read ({reason}); {file_remedy(path)}"


class NewerFormatError(CorruptFileError):
    """A file was written by a newer Vantage: its path, its format and the newest known one.

    It costs what a damaged file costs, but nothing replaces or removes it.
    """

    def __str__(self) -> str:
        path, reason = self.args
        return f"the file {path!r} cannot be read ({reason}); install a newer Vantage"


class DamagedIndexError(CorruptFileError):
    """A saved index of the engine is damaged: its path, what is wrong."""

    def __str__(self) -> str:
        path, reason = self.args
        return (
            f"the saved index {path!r} is damaged ({reason}); take it from a backup, or build it "
            "again from the vectors"
        )


class NoWorkersError(StateError):
    """No worker can do the work: the missing kind of worker."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)

    def __str__(self) -> str:
        return (
            f"no {self.args[0]} worker is running; start everything here with `vantage up` in "
            "another terminal, or add --local to work in this process"
        )


class OtherInstallationError(StateError):
    """Database, store or Redis belong to another installation, or a copy is used as the original.

    Its sentence says which, and what to do.
    """


class TransientError(VantageError):
    """An external service did not answer; the same call may succeed later."""


class StorageUnavailableError(TransientError):
    """The store did not answer: the key, the reason."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)

    def __str__(self) -> str:
        key, reason = self.args
        return (
            f"the store cannot read or write {key!r} ({reason}); is VANTAGE_STORE reachable, and "
            "may this user write there and to VANTAGE_LOCAL?"
        )


class DatabaseUnavailableError(TransientError):
    """The database did not answer: the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)

    def __str__(self) -> str:
        return f"the database did not answer ({self.args[0]}); is VANTAGE_DATABASE_URL right?"


class BrokerUnavailableError(TransientError):
    """Redis did not answer, or refused: the address without its password, the reason."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(address, reason)

    def __str__(self) -> str:
        address, reason = self.args
        return (
            f"Redis at {address} cannot be used now ({reason}); start everything here with "
            "`vantage up`, or check VANTAGE_REDIS_URL; `vantage doctor` tries all that is needed"
        )


class TooManyQueriesError(TransientError):
    """Enqueued queries take too much of Redis: bytes of this one, of those that wait, the limit."""

    def __init__(self, size: int, waiting: int, limit: int) -> None:
        super().__init__(size, waiting, limit)

    def __str__(self) -> str:
        size, waiting, limit = self.args
        return (
            f"the query's image of {size:,} bytes is not enqueued: {waiting:,} bytes of queries "
            f"wait already, and at most {limit:,} may (VANTAGE_QUEUED_BYTES); try again when some "
            "are answered, or search without enqueueing"
        )


class DecoderUnavailableError(TransientError):
    """Images cannot be decoded at this moment: the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)

    def __str__(self) -> str:
        return (
            f"the child process that decodes images does not work ({self.args[0]}); is there "
            "memory left, and may this user start processes?"
        )


class DeadlinePassedError(TransientError):
    """A scan was abandoned because its search is over."""

    def __str__(self) -> str:
        return "the search's deadline passed before its rows were scanned"
