"""Whether files exist, also on drives that do not answer; and what an answer says of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import existence, locations
from pipeline.existence import identity, look, shows_removals
from pipeline.locations import check_locations
from pipeline.records import Match, SearchResult


def test_files_are_there_missing_or_unknown(tmp_path: Path) -> None:
    there, missing, loop = (str(tmp_path / name) for name in ("there", "missing", "loop"))
    Path(there).touch()
    Path(loop).symlink_to(loop)
    below = f"{there}/below"
    found = look([there, missing, loop, below, "nul\0l", "x" * 5000, there], 600, identity)
    assert found == {there: identity(there), missing: None, below: None}


def test_a_file_was_removed_if_no_drive_may_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("root/empty", "root/full", "root/drives/one", "bare", "real"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("root/full/a", "root/full/.hidden/b", "root/drives/one/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "root" / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "bare")
    (tmp_path / "drives").symlink_to(tmp_path / "root" / "drives")
    mounts = frozenset(["/", str(tmp_path / "root" / "drives" / "one")])
    monkeypatch.setattr(existence, "_mounts", lambda: mounts)
    root = str(tmp_path / "root")
    wanted = {
        "": True, "full": True, "full/.hidden": True, "full/none": True, "none/at/all": True,
        "full/a": True, "full/a/b": True,  # a file now
        "empty": False, "empty/none": False, "link": False, "link/none": False,
        "dangling": False, "dangling/x": False,
        "drives": True, "drives/one": True, "drives/two": False, "drives/two/x": False,
    }  # fmt: skip
    assert {name: shows_removals(f"{root}/{name}".rstrip("/"), root) for name in wanted} == wanted
    linked = str(tmp_path / "drives")
    assert not shows_removals(f"{linked}/two", linked)
    for name in ("bare", "nowhere"):
        assert not shows_removals(str(tmp_path / name), str(tmp_path / name))
    (tmp_path / "root" / "loop").symlink_to(tmp_path / "root" / "loop")
    with pytest.raises(OSError, match="symbolic links"):
        shows_removals(f"{root}/loop", root)


class Drive:
    """A drive that does not answer until it is released."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.released = threading.Event()
        self.asked: list[str] = []

    def identity(self, path: str) -> tuple[int, int]:
        if path.startswith(self.folder):
            self.asked.append(path)
            self.released.wait(600)
        return identity(path)


@pytest.fixture
def dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Drive]:
    folder = tmp_path / "dead drive"
    folder.mkdir()
    for name in "abc":
        (folder / name).touch()
    drive = Drive(folder)
    monkeypatch.setattr(existence, "_mounts", lambda: frozenset(["/", str(folder)]))
    yield drive
    drive.released.set()
    for thread in threading.enumerate():
        if thread.name == "look":
            thread.join(600)


def test_a_dead_drive_holds_up_neither_the_caller_nor_other_drives(
    dead: Drive, tmp_path: Path
) -> None:
    (tmp_path / "good").touch()
    good, bad = str(tmp_path / "good"), [str(Path(dead.folder) / name) for name in "abc"]
    found = look([*bad, good], 0.2, dead.identity)
    assert bad[0] not in found
    assert found.get(good, identity(good)) == identity(good)
    # It is not asked again while it owes an answer, and others wait no moment for it.
    for _ in range(3):
        assert look([*bad, good], 600, dead.identity) == {good: identity(good)}
    assert dead.asked == bad[:1]
    dead.released.set()
    existence._asked[dead.folder][0].thread.join(600)
    assert set(look(bad, 600, dead.identity)) == set(bad)


def test_two_callers_may_ask_a_drive_at_the_same_time(dead: Drive) -> None:
    path = f"{dead.folder}/a"
    asked = threading.Event()
    found: list[Any] = []

    def ask(name: str) -> tuple[int, int]:
        asked.set()
        return dead.identity(name)

    first = threading.Thread(target=lambda: found.append(look([path], 600, ask)))
    first.start()
    assert asked.wait(600)
    # The first caller's time is not over: its drive may be as good as any.
    assert look([path], 600, identity) == {path: identity(path)}
    dead.released.set()
    first.join(600)
    assert found == [{path: identity(path)}]


def test_mount_points_are_known_without_asking_them() -> None:
    mounts = existence._mounts()
    assert "/" in mounts
    assert existence._mount_of("/", mounts) == "/"
    some = frozenset(["/", "/mnt/a b", "/mnt"])
    for path, wanted in (
        ("/mnt/a b/c/d", "/mnt/a b"),
        ("/mnt/a bc", "/mnt"),
        ("/mntx", "/"),
        ("/mnt", "/mnt"),
    ):
        assert existence._mount_of(path, some) == wanted


def result(*known: tuple[str, str]) -> SearchResult:
    match = Match(
        1, "0" * 64, tuple(path for path, _ in known), 0.5, 3, 4, 4,
        location_states=tuple(state for _, state in known),
    )  # fmt: skip
    return SearchResult((match,), True, (), {}, {}, collection="c")


def checked(
    monkeypatch: pytest.MonkeyPatch, roots: dict[str, str], *known: tuple[str, str]
) -> dict[str, str]:
    """Return locations and states of a checked answer, in their order."""

    def roots_of(_session: Any, names: set[str], paths: list[str]) -> dict[str, str]:
        assert names == {"c"}
        return {path: roots[path] for path in paths if path in roots}

    class Nothing:
        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(locations, "LOOK_S", 600)
    monkeypatch.setattr(locations, "location_roots", roots_of)
    monkeypatch.setattr(locations, "session_scope", lambda *_, **__: Nothing())
    (found,) = check_locations(None, [result(*known)])  # type: ignore[arg-type]
    (match,) = found.matches
    assert len(match.locations) == len(match.location_states) == len(known)
    assert Match.from_dict(match.to_dict()) == match
    return dict(zip(match.locations, match.location_states, strict=True))


def test_what_exists_is_first_and_what_is_gone_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("root/z.png", "root/back.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "unmounted").mkdir()
    root = str(tmp_path / "root")
    paths = {name: f"{root}/{name}.png" for name in ("a", "b", "z", "back")}
    unmounted, elsewhere = str(tmp_path / "unmounted/c.png"), "/nowhere at all/d.png"
    alone, unregistered = f"{root}/alone.png", f"{root}/unregistered.png"
    found = checked(
        monkeypatch,
        {
            paths["a"]: root,
            paths["b"]: root,
            unmounted: str(tmp_path / "unmounted"),
            elsewhere: "/nowhere at all",
            alone: alone,
        },
        (paths["a"], "unknown"),
        (paths["z"], "unknown"),
        (unmounted, "unknown"),
        (elsewhere, "unknown"),
        (alone, "unknown"),
        (unregistered, "unknown"),
        (paths["b"], "gone"),
        (paths["back"], "gone"),
    )
    assert list(found.items()) == [
        (paths["back"], "present"),
        (paths["z"], "present"),
        *sorted((path, "unknown") for path in (unmounted, elsewhere, unregistered)),
        *sorted((path, "gone") for path in (paths["a"], paths["b"], alone)),
    ]


def test_a_former_name_of_a_drive_that_ignores_case_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, former = tmp_path / "photo.png", tmp_path / "PHOTO.PNG"
    now.touch()
    former.hardlink_to(now)  # two names of one file, as such a drive shows it
    found = checked(monkeypatch, {}, (str(now), "unknown"), (str(former), "gone"))
    assert list(found.items()) == [(str(now), "present"), (str(former), "gone")]


def test_answers_without_matches_and_errors_are_passed_on() -> None:
    empty = replace(result(), matches=())
    error = ValueError("no picture")
    assert check_locations(None, [empty, error]) == [empty, error]  # type: ignore[arg-type]


def test_a_forked_child_asks_anew(dead: Drive) -> None:
    path = f"{dead.folder}/a"
    assert look([path], 0.01, dead.identity) == {}
    child = os.fork()
    if not child:
        os._exit(0 if look([path], 600, identity) == {path: identity(path)} else 1)
    assert os.waitpid(child, 0)[1] == 0
