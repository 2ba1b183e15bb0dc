from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Settings
from workers.celery_private.events import discreet
from workers.flower_app import hosts_of, is_allowed, is_login


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        ("{'matches': 3}", "{'matches': 3}"),
        ("{'stage': 'extract', 'waiting': True}", "{'stage': 'extract', 'waiting': True}"),
        ("{'paused': \"'/a b' is missing\"}", "{'paused': '...'}"),
        ("{'error': '/home/ana'}", "{'error': '...'}"),
        ("{'error': 'photo.jpg'}", "{'error': '...'}"),
        ("{'error': 'a \\'quoted\\' /path'}", "{'error': '...'}"),
        ("{'error': '/cut of", "{'error': '...'"),
        ("{'error': '/cut of\\", "{'error': '...'"),
        ("['/a', '/b', 4]", "['...', '...', 4]"),
        ("None", "None"),
    ],
)
def test_of_a_result_numbers_and_words_are_shown(result: str, shown: str) -> None:
    assert discreet({"result": result, "runtime": 1.0}) == {"result": shown, "runtime": 1.0}


@given(st.dictionaries(st.sampled_from(["paused", "error"]), st.text(), min_size=1))
def test_no_path_is_shown_whatever_its_characters(values: dict[str, str]) -> None:
    with_path = {key: f"/home/ana/{value}" for key, value in values.items()}
    for result in (repr(with_path), repr(with_path)[:-3]):
        assert "ana" not in discreet({"result": result})["result"]


def test_of_an_exception_its_class_is_shown() -> None:
    fields = {"exception": "MissingRootError('/home/ana')", "traceback": 'File "/home/ana/x.py"'}
    assert discreet(fields) == {
        "exception": "MissingRootError: in the log of the worker",
        "traceback": "in the log of the worker",
    }
    assert discreet({"exception": "<Unrepresentable '/home'>"})["exception"].startswith("an error")
    assert discreet({"name": "job.register", "args": "('id',)"}) == {
        "name": "job.register",
        "args": "('id',)",
    }


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("LOCALHOST", True),
        ("127.0.0.1", True),
        ("[::1]", True),
        ("::1", True),
        ("192.168.1.2", True),
        ("studio", True),
        ("", False),
        ("example.org", False),
        ("127.0.0.1.nip.io", False),
        ("localhost.example.org", False),
        ("studio.example.org", False),
    ],
)
def test_a_request_names_us_or_an_address(host: str, allowed: bool) -> None:
    settings = Settings.from_env({"VANTAGE_HOST": "studio"})
    assert is_allowed(host, hosts_of(settings)) == allowed


def _basic(login: bytes) -> str:
    return "Basic " + base64.b64encode(login).decode()


RIGHT = _basic(b"vantage:word")


@pytest.mark.parametrize("given", [RIGHT, f" {RIGHT} ", RIGHT.replace("Basic ", "basic  ")])
def test_the_password_is_known(given: str) -> None:
    assert is_login(given, ["vantage:word"])


@pytest.mark.parametrize(
    "given",
    [
        "",
        "ü",
        "Basic ü",
        "Basic \u20ac",
        RIGHT + "\xfc",
        RIGHT.removeprefix("Basic "),
        RIGHT.replace("Basic", "Bearer"),
        "Basic",
        "Basic %%%",
        "Basic a b",
        f"{RIGHT} b",
        "Basic " + "A" * 100_000,
        "Basic \x00\x7f",
        _basic(b"\xff\xfe"),
        _basic("vantage:ü".encode()),
        _basic(b"vantage:other"),
        _basic(b"vantage:word\n"),
        _basic(b"word"),
    ],
)
def test_no_other_header_is_taken_for_the_password(given: str) -> None:
    assert not is_login(given, ["vantage:word"])
