from __future__ import annotations

import inspect
import json
import pickle

import pytest

from pipeline import errors
from pipeline.errors import (
    ConfigError,
    InputError,
    StateError,
    TransientError,
    UnknownNameError,
    VantageError,
)

ARGUMENTS: dict[str, tuple[object, ...]] = {
    "VantageError": ("something happened",),
    "ConfigError": ("VANTAGE_BATCH_SIZE", "many", "must be a whole number"),
    "InputError": ("no such thing",),
    "ImageReadError": ("/photos/a b.jpg", "truncated", "the file ends too early"),
    "NoFeaturesError": ("/photos/sky.jpg", "sift"),
    "UnknownNameError": ("collection", "holidya", ["holiday", "work"]),
    "StateError": ("do this",),
    "IndexNotBuiltError": ("holiday",),
    "SchemaVersionError": (None, "0001"),
    "MissingRootError": ("/photos",),
    "CorruptFileError": ("/store/a.npz", "cut off"),
    "NewerFormatError": ("/store/groups/0/a.npz", "format 2"),
    "LostFileError": ("/store/groups/0/a.npz", "No such file or directory"),
    "UnreadableFileError": ("/store/groups/0/a.npz", "Permission denied"),
    "DamagedIndexError": ("/here/a.vantage", "cut off"),
    "NoWorkersError": ("extract",),
    "OtherInstallationError": ("the store belongs to another installation",),
    "TransientError": ("later",),
    "TooManyQueriesError": (10, 90, 95),
    "StorageUnavailableError": ("groups/0/a.npz", "timed out"),
    "DatabaseUnavailableError": ("locked",),
    "DeadlinePassedError": (),
    "DecoderUnavailableError": ("it died three times",),
    "BrokerUnavailableError": ("redis://host:6379", "refused"),
}


def all_errors() -> list[type[VantageError]]:
    return [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, VantageError)
    ]


def make(kind: type[VantageError]) -> VantageError:
    return kind(*ARGUMENTS[kind.__name__])


def test_every_error_is_public_and_tried_here() -> None:
    names = {kind.__name__ for kind in all_errors()}
    assert names == set(errors.__all__) == set(ARGUMENTS)


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_survives_pickle_and_celerys_json(kind: type[VantageError]) -> None:
    error = make(kind)
    again = pickle.loads(pickle.dumps(error))
    rebuilt = kind(*json.loads(json.dumps(error.args)))
    for other in (again, rebuilt):
        assert type(other) is kind
        assert list(map(str, other.args)) == list(map(str, error.args))
        assert str(other) == str(error)


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_every_message_holds_what_it_is_about(kind: type[VantageError]) -> None:
    error = make(kind)
    text = str(error)
    assert "\n" not in text
    if kind is not UnknownNameError:
        for argument in error.args:
            shown = "none" if argument is None else str(argument)
            assert shown in text, (shown, text)


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_the_class_of_an_error_says_who_must_act(kind: type[VantageError]) -> None:
    if kind is VantageError:
        return
    families = [ConfigError, InputError, StateError, TransientError]
    assert sum(issubclass(kind, family) for family in families) == 1
    assert issubclass(kind, ValueError) == issubclass(kind, ConfigError | InputError)


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (["holiday"], "did you mean 'holiday'?"),
        (["work", "cats"], "known: 'work', 'cats'"),
        ([], "there are none yet"),
    ],
)
def test_an_unknown_name_lists_the_known_ones(known: list[str], said: str) -> None:
    assert said in str(UnknownNameError("collection", "holidya", known))


def test_a_missing_schema_is_called_so() -> None:
    assert "schema none" in str(errors.SchemaVersionError(None, "0001"))
