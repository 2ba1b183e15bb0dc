from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.private_files import close_to_others, is_shared, make_folder, make_home, touch
from vantage import Collection, Settings


@pytest.fixture(params=[0o022, 0o002, 0o000, 0o007])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_home_and_what_is_in_it_are_for_this_user(tmp_path: Path, umask: int) -> None:
    home = tmp_path / "a" / "home"
    make_home(home)
    make_folder(home / "store" / "groups")
    touch(home / "store" / "groups" / "file")
    modes = [_mode(path) for path in (home, *home.rglob("*"))]
    assert modes == [0o700, 0o700, 0o700, 0o600]


@pytest.mark.usefixtures("usual_umask")
def test_an_empty_folder_is_taken_over_and_another_keeps_its_mode(tmp_path: Path) -> None:
    for name in ("empty", "full", "shared"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "shared").chmod(0o2775)
    for name, mode in (("empty", 0o700), ("full", 0o755), ("shared", 0o2775)):
        make_home(tmp_path / name)
        assert _mode(tmp_path / name) == mode


def test_what_is_made_in_a_shared_folder_is_for_its_group(tmp_path: Path, umask: int) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o770)
    make_folder(shared / "store" / "groups")
    touch(shared / "file")
    assert _mode(shared / "store") == 0o770 & ~umask
    assert _mode(shared / "file") == 0o660 & ~umask


def test_what_a_usual_umask_makes_is_not_shared_on_purpose(tmp_path: Path, umask: int) -> None:
    (tmp_path / "home").mkdir()
    assert is_shared(tmp_path / "home") == (umask == 0o007)
    (tmp_path / "home").chmod(0o775)
    assert not is_shared(tmp_path / "home")
    (tmp_path / "home").chmod(0o2775)
    assert is_shared(tmp_path / "home")


@pytest.mark.usefixtures("usual_umask")
def test_a_folder_for_everybody_is_not_shared_on_purpose(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    assert not is_shared(tmp_path)
    make_home(tmp_path / "home")
    assert _mode(tmp_path / "home") == 0o700
    assert not is_shared(tmp_path / "is not there")


@pytest.mark.usefixtures("usual_umask")
def test_an_empty_folder_for_everybody_stays_one(tmp_path: Path) -> None:
    """As ``/tmp`` in a new container, where a database of root's is made."""
    tmp_path.chmod(0o1777)
    make_home(tmp_path)
    assert _mode(tmp_path) == 0o1777


@pytest.mark.usefixtures("usual_umask")
def test_what_a_former_release_made_is_closed(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "vantage.sqlite").touch()
    for name in ("logs", "vantage.sqlite", "is not there"):
        close_to_others(tmp_path / name)
    assert [_mode(tmp_path / name) for name in ("logs", "vantage.sqlite")] == [0o700, 0o600]


@pytest.mark.usefixtures("usual_umask")
def test_an_empty_folder_of_a_database_elsewhere_keeps_its_mode(tmp_path: Path) -> None:
    """Whose it is nobody knows; only the home is known to be for Vantage."""
    for name in ("srv", "home"):
        (tmp_path / name).mkdir()
    address = f"sqlite:///{tmp_path}/srv/v.sqlite"
    variables = {"VANTAGE_HOME": str(tmp_path / "home"), "VANTAGE_DATABASE_URL": address}
    with Collection.open("one", Settings.from_env(variables), local=True):
        pass
    assert _mode(tmp_path / "srv") == 0o755
    assert _mode(tmp_path / "srv" / "v.sqlite") == 0o600
    assert _mode(tmp_path / "home") == 0o700


@pytest.mark.usefixtures("usual_umask")
@pytest.mark.parametrize("shared", [False, True])
def test_an_index_made_here_is_for_this_user_alone(tmp_path: Path, shared: bool) -> None:
    """Or for the group, where the home was made for it."""
    home, photographs = tmp_path / "home", tmp_path / "photographs"
    photographs.mkdir()
    noise = np.random.default_rng(1).integers(0, 255, (120, 160), np.uint8)
    Image.fromarray(noise).resize((320, 240)).save(photographs / "a.png")
    if shared:
        home.mkdir()
        home.chmod(0o770)
    settings = Settings.from_env({"VANTAGE_HOME": str(home)})
    with Collection.open("one", settings, local=True) as collection:
        collection.index(photographs)
        assert collection.search(photographs / "a.png").matches
    made = list(home.rglob("*"))
    assert len([path for path in made if path.is_file()]) > 5
    folder, file = (0o750, 0o640) if shared else (0o700, 0o600)
    others = {path: oct(_mode(path)) for path in made}
    assert {mode for path, mode in others.items() if path.is_dir()} == {oct(folder)}
    assert {mode for path, mode in others.items() if path.is_file()} == {oct(file)}, others
