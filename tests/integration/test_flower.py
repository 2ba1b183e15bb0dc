"""Flower's own API names the tasks of a finished chord, with arguments that people can read."""

from __future__ import annotations

import ast
import base64
import http.client
import json
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sites import Eventually, Site, ask_flower

from pipeline.request import SearchRequest
from vantage import Collection
from workers import searches
from workers.context import Context
from workers.embedded import discover_redis_url
from workers.redis_url import RedisAddress
from workers.workflows import task

INDEXING = {
    "job.register",
    "extract.batch",
    "extract.collect",
    "group.train",
    "group.assign",
    "group.collect",
    "group.merge",
    "group.publish",
}
RETRIEVAL = {"retrieve.prepare", "retrieve.scan", "retrieve.rank"}


def _tasks(site: Site, about: str) -> list[dict[str, Any]]:
    """Return the tasks that have an id among their arguments."""
    tasks = json.loads(ask_flower(site.settings, "/api/tasks?limit=20000"))
    return [task for task in tasks.values() if about in (task["args"] or "")]


def _finished(site: Site, about: str, names: set[str]) -> list[dict[str, Any]]:
    tasks = _tasks(site, about)
    done = {task["name"] for task in tasks if task["state"] == "SUCCESS"}
    return tasks if done == names else []


def _arguments(tasks: list[dict[str, Any]], name: str) -> list[tuple[Any, ...]]:
    return sorted(ast.literal_eval(task["args"]) for task in tasks if task["name"] == name)


def test_the_tasks_of_a_job_are_listed_by_name_with_their_arguments(
    site: Site, photo_folder: Path, eventually: Eventually
) -> None:
    with Collection.open("watched", site.settings) as collection:
        handle = collection.index(sorted(photo_folder.glob("*.png"))[:8])
        handle.wait(timeout=600)
    tasks = eventually(lambda: _finished(site, handle.id, INDEXING))
    # Job, attempt, number of the part: two batches of four images, four groups.
    batches = _arguments(tasks, "extract.batch")
    assert [(job, part) for job, _, part in batches] == [(handle.id, 0), (handle.id, 1)]
    assert [part for _, _, part in _arguments(tasks, "group.merge")] == [0, 1, 2, 3]
    workers = {task["name"]: task["worker"].split("@")[0] for task in tasks}
    assert workers["extract.batch"] == "extract"
    assert workers["extract.collect"] == "query"
    assert workers["group.merge"] == "group"


def test_the_tasks_of_a_search_are_listed_with_their_groups(
    site: Site, indexed: str, queries: list[Path], eventually: Eventually
) -> None:
    with Collection.open(indexed, site.settings) as collection:
        handle = collection.enqueue_search(queries[0], plan="exhaustive", deadline_s=600)
        assert handle.wait(timeout=600).complete
    tasks = eventually(lambda: _finished(site, handle.id, RETRIEVAL))
    scans = _arguments(tasks, "retrieve.scan")
    assert scans == [(handle.id, group) for group in range(4)]
    hosts = {task["worker"].split("@")[1] for task in tasks if task["name"] == "retrieve.scan"}
    assert hosts == {site.settings.host, site.second.settings.host}


def test_no_path_is_in_results_exceptions_and_tracebacks(
    site: Site, eventually: Eventually
) -> None:
    """A result with a sentence, and a task that fails by a TypeError."""
    name = "/photographs/of a party"
    context = Context(site.settings)
    asked = SearchRequest()
    searches.request(context, "a search with a path", name, b"no image", asked)
    task(context.app, "job.register", "a job that fails").apply_async()
    found = eventually(lambda: _ended(site, "a search with a path"))
    assert "party" not in found["result"]
    assert "error" in found["result"]
    failed = eventually(lambda: _ended(site, "a job that fails"))
    assert failed["state"] == "FAILURE"
    shown = json.loads(ask_flower(site.settings, f"/api/task/info/{failed['uuid']}"))
    assert shown["exception"] == "TypeError: in the log of the worker"
    assert shown["traceback"] == "in the log of the worker"
    context.close()


def _ended(site: Site, about: str) -> dict[str, Any] | None:
    (found, *_) = _tasks(site, about) or [None]
    return found if found and found["state"] in ("SUCCESS", "FAILURE") else None


@pytest.mark.parametrize("path", ["/metrics", "/", "/api/tasks", "/nowhere", "/task/info"])
def test_a_header_that_is_no_login_is_asked_for_one(site: Site, path: str) -> None:
    login = base64.b64encode("vantage:ü".encode())
    place = urlsplit(json.loads((site.settings.home / "run" / "flower.json").read_text())["url"])
    for header in (None, b"\xc3\xbc", b"Basic \xff", b"Basic " + login, b"Basic %", b"Bearer x"):
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=600)
        connection.request("GET", path, headers={"Authorization": header} if header else {})
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (401, b"Access denied"), header
        assert answer.headers["WWW-Authenticate"].startswith("Basic")
        connection.close()


def test_what_shows_nothing_needs_no_password(site: Site) -> None:
    url = json.loads((site.settings.home / "run" / "flower.json").read_text())["url"]
    with urllib.request.urlopen(f"{url}/healthcheck", timeout=600) as answer:
        assert answer.status == 200


def test_no_password_is_in_what_workers_tell(site: Site, eventually: Eventually) -> None:
    def told() -> str:
        text = ask_flower(site.settings, "/api/workers?refresh=true")
        return text if "redis+socket" in text else ""

    text = eventually(told)
    (password,) = RedisAddress.parse(discover_redis_url(site.settings) or "").passwords
    assert password not in text
    assert "extract" in ask_flower(site.settings, "/broker")
    assert password not in ask_flower(site.settings, "/broker")
