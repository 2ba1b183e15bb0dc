"""What the store lacks or has damaged costs that file alone: the rest answers and says so."""

from __future__ import annotations

import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from heavy import long_only
from sites import found_names, make_settings
from sqlalchemy import update

from pipeline.arrays import ArrayFile, arrays_to_bytes
from pipeline.config import Settings
from pipeline.errors import CorruptFileError, StorageUnavailableError
from pipeline.installation import settle
from pipeline.lost_database import database_of
from pipeline.metadata.engine import session_scope
from pipeline.metadata.files import known_files
from pipeline.metadata.models import Segment
from pipeline.metadata.records import SegmentRecord
from pipeline.metadata.versions import current_version
from pipeline.records import SearchResult
from pipeline.status import read_status
from pipeline.storage import file_checksum
from pipeline.store_check import FileTrouble
from pipeline.store_root import StoreRoot
from pipeline.verified import look_at
from vantage import Collection
from workers.context import Context
from workers.placement import compare_copies, fetch_copies, watch_copies

FIRST = ("astronaut", "brick", "chelsea", "coffee")
LATER = ("coins", "page")
NAMES = (*FIRST, *LATER)


@pytest.fixture(scope="module")
def made(
    small_photographs: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A home with two collections, one with two segments a group, and their photographs."""
    base = tmp_path_factory.mktemp("lost")
    folder = base / "photographs"
    folder.mkdir()
    settings = make_settings(base / "home")
    for name in FIRST:
        (folder / f"{name}.png").write_bytes(small_photographs[name])
    with Collection.open("pictures", settings, local=True) as pictures:
        pictures.index([folder])
        for name in LATER:
            (folder / f"{name}.png").write_bytes(small_photographs[name])
        pictures.index([folder])
    with Collection.open("others", settings, local=True) as others:
        others.index([folder / f"{name}.png" for name in ("coffee", "coins", "page")])
    return base / "home", folder


@pytest.fixture
def settings(made: tuple[Path, Path], tmp_path: Path) -> Settings:
    """The home, to be damaged; nothing is copied to this host yet."""
    home = tmp_path / "home"
    shutil.copytree(made[0], home)
    shutil.rmtree(home / "local", ignore_errors=True)
    settings = make_settings(home, compact_above=0)
    with database_of(settings) as engine:
        settle(engine, StoreRoot(settings.store))  # a copy is an installation of its own
    return settings


@pytest.fixture
def folder(made: tuple[Path, Path]) -> Path:
    return made[1]


@pytest.fixture
def pictures(settings: Settings) -> Iterator[Collection]:
    with Collection.open("pictures", settings, local=True) as opened:
        yield opened


def segments(collection: Collection, group: int) -> list[SegmentRecord]:
    with session_scope(collection._driver.resources.engine, write=False) as session:
        return list(current_version(session, collection.name).group_segments(group))


def search(collection: Collection, name: str, folder: Path) -> SearchResult:
    return collection.search(folder / f"{name}.png", plan="exhaustive")


def found(collection: Collection, folder: Path) -> dict[str, Any]:
    return {name: search(collection, name, folder).to_dict()["matches"] for name in NAMES}


def troubles(settings: Settings, collection: Collection) -> list[FileTrouble]:
    engine = collection._driver.resources.engine
    return list(read_status(settings, engine, collection.name).files)


# --- harms ---------------------------------------------------------------------------------------


def lose(path: Path) -> None:
    path.unlink()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()  # not in place: the copy of a running process stays
    path.write_bytes(data)


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])


def empty(path: Path) -> None:
    path.unlink()
    path.touch()


def put_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "something").touch()


def make_a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def compress(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    path.unlink()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


HARMS: dict[str, tuple[Callable[[Path], None], str]] = {
    "lost": (lose, "lost"),
    "a flipped bit": (flip, ""),
    "cut off": (cut, "damaged"),
    "empty": (empty, "damaged"),
    "a folder in its place": (put_a_folder, "damaged"),
    "a link to itself": (make_a_loop, "unreadable"),
    "compressed": (compress, "damaged"),
}
"""What is done to a file, and what `status` sees of it without reading it."""

SAMPLE = ("lost", "a flipped bit", "a folder in its place")


def of_harms() -> list[Any]:
    return [
        pytest.param(harm, seen, id=name, marks=() if name in SAMPLE else long_only)
        for name, (harm, seen) in HARMS.items()
    ]


@pytest.mark.parametrize(("harm", "seen"), of_harms())
def test_a_segment_costs_its_rows_alone_until_it_is_made_again(
    pictures: Collection,
    settings: Settings,
    folder: Path,
    small_photographs: dict[str, bytes],
    tmp_path: Path,
    harm: Callable[[Path], None],
    seen: str,
) -> None:
    expected = found(pictures, folder)
    victim = segments(pictures, 1)[0]
    path = Path(settings.store) / victim.key
    harm(path)
    shutil.rmtree(settings.local)
    with Collection.open("pictures", settings, local=True) as other:
        result = search(other, "coffee", folder)
        assert (result.complete, result.missing_groups) == (False, ())
        (cause,) = result.causes
        assert victim.key in cause
        assert "`vantage rebuild pictures`" in cause
        assert found_names(result)[0] == "coffee"
        rows = sum(segment.descriptor_count for g in range(4) for segment in segments(other, g))
        left = 1 - victim.descriptor_count / rows
        assert result.plan["scanned_share"] == pytest.approx(left, abs=1e-5)
        if seen:
            (trouble,) = troubles(settings, other)
            assert (trouble.key, trouble.state, trouble.kind) == (victim.key, seen, "segment")
            assert "vantage rebuild pictures" in trouble.sentence()
        with Collection.open("others", settings, local=True) as unharmed:
            assert search(unharmed, "coffee", folder).complete
        # Others can be added meanwhile.
        more = tmp_path / "more"
        more.mkdir()
        (more / "rocket.png").write_bytes(small_photographs["rocket"])
        assert other.index([more]).wait().state == "done"
        assert found_names(other.search(more / "rocket.png"))[0] == "rocket"
    if path.is_dir():
        shutil.rmtree(path)  # nobody removes a folder that somebody else has put there
    with Collection.open("pictures", settings, local=True) as other:
        assert other.rebuild().wait().state == "done"
        assert search(other, "coffee", folder).complete
        assert troubles(settings, other) == []
        for name in NAMES:
            assert found_names(search(other, name, folder))[0] == name
    assert expected.keys() == set(NAMES)


def test_a_segment_with_the_recorded_checksum_and_other_insides_is_found_out_and_made_again(
    pictures: Collection, settings: Settings, folder: Path
) -> None:
    victim = segments(pictures, 2)[0]
    path = Path(settings.store) / victim.key
    file = ArrayFile(path)
    arrays = {name: file[name].copy() for name in file}
    arrays["cell_offsets"][1:-1] += 10**9
    meta = file.meta
    path.unlink()
    path.write_bytes(arrays_to_bytes(arrays, meta))
    with session_scope(pictures._driver.resources.engine) as session:
        session.execute(
            update(Segment).where(Segment.id == victim.id).values(checksum=file_checksum(path))
        )
    with Collection.open("pictures", settings, local=True) as other:
        (cause,) = search(other, "coffee", folder).causes
        assert "cell_offsets do not rise" in cause
        other.rebuild().wait()
        assert search(other, "coffee", folder).complete


def test_one_of_the_small_segments_that_are_scanned_as_one(
    pictures: Collection, settings: Settings, folder: Path
) -> None:
    first, second = segments(pictures, 3)
    resources = pictures._driver.resources
    with session_scope(resources.engine, write=False) as session:
        version = current_version(session, "pictures")
    assert len(resources.group_segments(version, 3).opened) == 1
    content = (Path(settings.store) / first.key).read_bytes()
    (Path(settings.store) / first.key).unlink()
    shutil.rmtree(settings.local)
    with Collection.open("pictures", settings, local=True) as other:
        fresh = other._driver.resources
        opened, lost = fresh.group_segments(version, 3)
        assert list(lost) == [first.key]
        assert [one.segment.rows.size for one in opened] == [second.descriptor_count]
        # It comes back from the backup, while everything runs.
        (Path(settings.store) / first.key).write_bytes(content)
        opened, lost = fresh.group_segments(version, 3)
        assert lost == {}
        both = first.descriptor_count + second.descriptor_count
        assert [one.segment.rows.size for one in opened] == [both]


def test_a_segment_that_disappears_while_it_is_open_goes_on_to_answer(
    pictures: Collection, settings: Settings, folder: Path
) -> None:
    before = search(pictures, "page", folder)
    victim = segments(pictures, 0)[0]
    for place in (settings.store, settings.local):
        (Path(place) / victim.key).unlink()
    after = search(pictures, "page", folder)
    assert (after.complete, after.matches) == (True, before.matches)
    assert [one.key for one in troubles(settings, pictures)] == [victim.key]


def test_all_segments_of_all_groups(pictures: Collection, settings: Settings, folder: Path) -> None:
    for path in Path(settings.store).glob("groups/*/*.npz"):
        path.unlink()
    result = search(pictures, "coffee", folder)
    assert (result.complete, result.missing_groups) == (False, ())
    assert [found_names(result), result.matches[0].votes] == [["coffee"], 0]  # the file itself
    assert len(result.causes) == 8
    assert pictures.rebuild().wait().state == "done"
    assert search(pictures, "coffee", folder).complete


@pytest.mark.parametrize("harm", [lose, flip])
def test_a_tree_costs_its_collection_alone_and_a_local_copy_serves_on(
    settings: Settings, folder: Path, harm: Callable[[Path], None]
) -> None:
    with Collection.open("pictures", settings, local=True) as pictures:
        tree = pictures._driver.resources.current_version("pictures").tree
        expected = search(pictures, "coffee", folder).matches
        harm(Path(settings.store) / tree.key)
        with Collection.open("pictures", settings, local=True) as other:
            assert search(other, "coffee", folder).complete
    shutil.rmtree(settings.local)
    with Collection.open("pictures", settings, local=True) as other:
        with pytest.raises(CorruptFileError, match=r"trees/.*`vantage rebuild COLLECTION`"):
            search(other, "coffee", folder)
        with Collection.open("others", settings, local=True) as unharmed:
            assert search(unharmed, "coffee", folder).complete
        if harm is lose:
            assert [one.kind for one in troubles(settings, other)] == ["tree"]
        other.rebuild().wait()
        again = search(other, "coffee", folder)
        assert (again.complete, found_names(again)[0]) == (True, "coffee")
        assert {match.image for match in again.matches[:1]} == {expected[0].image}


@pytest.mark.parametrize("harm", [lose, flip, cut])
def test_a_container_stops_only_a_rebuild_until_its_photographs_are_read_again(
    pictures: Collection, settings: Settings, folder: Path, harm: Callable[[Path], None]
) -> None:
    path = sorted(Path(settings.store).glob("containers/*/*.npz"))[0]
    harm(path)
    assert search(pictures, "coffee", folder).complete
    with pytest.raises(CorruptFileError, match=r"containers/.*--extractor NAME"):
        pictures.rebuild()
    if harm is lose:
        (trouble,) = troubles(settings, pictures)
        assert (trouble.kind, trouble.state) == ("container", "lost")
    assert search(pictures, "coffee", folder).complete
    done = pictures.rebuild(extractor=pictures._record().extractor).wait()
    assert done.counters["images_extracted"] == len(NAMES)
    assert pictures.rebuild().wait().state == "done"
    for name in NAMES:
        assert found_names(search(pictures, name, folder))[0] == name


@pytest.mark.parametrize("harm", [lose, flip])
def test_a_container_that_is_not_indexed_yet_is_made_again_by_the_next_index_job(
    pictures: Collection,
    settings: Settings,
    small_photographs: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Path], None],
) -> None:
    more = tmp_path / "more"
    more.mkdir()
    for name in ("rocket", "text"):
        (more / f"{name}.png").write_bytes(small_photographs[name])
    before = set(Path(settings.store).glob("containers/*/*.npz"))
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.indexing.train.train", _killed)
        with pytest.raises(KeyboardInterrupt):
            pictures.index([more])
    (made,) = set(Path(settings.store).glob("containers/*/*.npz")) - before
    harm(made)
    assert pictures.index([more]).wait().state == "done"
    assert len(pictures) == len(NAMES) + 2
    assert pictures.verify().ok
    assert found_names(pictures.search(more / "rocket.png"))[0] == "rocket"
    assert pictures.rebuild().wait().state == "done"


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_store_that_is_away_is_said_of_every_segment_that_is_not_here(
    pictures: Collection, settings: Settings, folder: Path
) -> None:
    search(pictures, "coffee", folder)
    victim = segments(pictures, 1)[0]
    (settings.local / victim.key).unlink()
    Path(settings.store).rename(Path(settings.store).with_name("unmounted"))
    with Collection.open("pictures", settings, local=True) as other:
        result = search(other, "coffee", folder)
        assert not result.complete
        (cause,) = result.causes
        assert "is VANTAGE_STORE reachable" in cause
        (trouble,) = troubles(settings, other)
        assert (trouble.state, trouble.key) == ("unreachable", "")
        with pytest.raises(StorageUnavailableError):
            other.rebuild()


def test_verify_reads_everything_and_says_what_to_do(
    pictures: Collection, settings: Settings, folder: Path
) -> None:
    found = pictures.verify()
    assert (found.ok, found.troubles, found.copies_dropped) == (True, (), 0)
    assert found.files == 8 + 1 + 2
    assert found.bytes == sum(
        (Path(settings.store) / key).stat().st_size for key in _keys(pictures)
    )
    search(pictures, "coffee", folder)
    segment, tree = segments(pictures, 1)[0], pictures._driver.resources.current_version("pictures")
    flip(Path(settings.store) / segment.key)
    container = sorted(one for one in _keys(pictures) if one.startswith("containers/"))[0]
    (Path(settings.store) / container).unlink()
    copy = settings.local / tree.tree.key
    content = copy.read_bytes()
    copy.unlink()
    copy.write_bytes(content[:-100] + bytes(100))
    found = pictures.verify()
    assert (found.ok, found.copies_dropped, copy.exists()) == (False, 1, False)
    told = {one.key: (one.kind, one.state, one.remedy) for one in found.troubles}
    assert told.keys() == {segment.key, container}
    assert told[segment.key][:2] == ("segment", "damaged")
    assert "`vantage rebuild pictures`" in told[segment.key][2]
    assert told[container][:2] == ("container", "lost")
    assert "`vantage rebuild pictures --extractor NAME`" in told[container][2]
    with Collection.open("others", settings, local=True) as others:
        assert others.verify().ok
    pictures.rebuild(extractor=pictures._record().extractor)
    found = pictures.verify()
    assert found.ok
    # What no search needs any more is told apart.
    assert all(not one.current for one in found.troubles)


def _keys(collection: Collection) -> list[str]:
    with session_scope(collection._driver.resources.engine, write=False) as session:
        return [one.key for one in known_files(session, collection.name)]


# --- what workers do -----------------------------------------------------------------------------


@pytest.fixture
def context(settings: Settings) -> Iterator[Context]:
    made = Context(settings)
    yield made
    made.close()


def test_a_worker_fetches_what_there_is_and_tells_of_the_rest(
    context: Context, settings: Settings, pictures: Collection
) -> None:
    victim = segments(pictures, 1)[0]
    path = Path(settings.store) / victim.key
    content = path.read_bytes()
    path.unlink()
    every = [one for group in (0, 1) for one in segments(pictures, group)]
    with Collection.open("others", settings, local=True) as others:
        every += [one for group in (0, 1) for one in segments(others, group)]
    assert fetch_copies(context, [0, 1]) == len(every) - 1
    assert all((settings.local / one.key).exists() for one in every if one.key != victim.key)
    (told,) = context.troubles.told()
    assert victim.key in told
    assert "`vantage rebuild pictures`" in told
    path.write_bytes(content)
    assert fetch_copies(context, [0, 1]) == len(every)
    assert context.troubles.told() == []


def test_a_store_that_is_away_does_not_keep_a_worker_from_what_is_here(
    context: Context, settings: Settings, pictures: Collection
) -> None:
    here = fetch_copies(context, [0, 1])
    victim = segments(pictures, 0)[0]
    other = segments(pictures, 1)[0]
    (settings.local / victim.key).unlink()
    (settings.local / other.key).unlink()
    Path(settings.store).rename(Path(settings.store).with_name("unmounted"))
    asked = []
    copy_to = context.storage._copy_to
    context.storage._copy_to = lambda *args: (asked.append(args), copy_to(*args))  # type: ignore[method-assign]
    assert fetch_copies(context, [0, 1]) == here - 2
    assert len(asked) == 1, "a store that is away may let everybody wait for a minute"
    told = context.troubles.told()
    assert [victim.key in told[0], other.key in told[1]] == [True, True]


def test_copies_are_compared_in_the_background_and_damaged_ones_are_fetched_again(
    context: Context, settings: Settings, pictures: Collection, folder: Path
) -> None:
    fetch_copies(context, range(4))
    first, second = segments(pictures, 0)[0], segments(pictures, 1)[0]
    # A copy of its own, written to where nobody looks: the record says that it is sound.
    copy = settings.local / first.key
    data = bytearray(copy.read_bytes())
    data[len(data) // 2] ^= 1
    copy.unlink()
    copy.write_bytes(data)
    context.storage._verified.note(first.key, first.checksum, look_at(copy))
    # And one that is a link to the stored file, which is damaged with it.
    with (Path(settings.store) / second.key).open("r+b") as stream:
        stream.seek(len(data) // 2)
        stream.write(b"damage")
    context.storage._verified.note(
        second.key, second.checksum, look_at(settings.local / second.key)
    )
    assert compare_copies(context, range(4), threading.Event()) == 2
    fetch_copies(context, range(4))
    assert file_checksum(copy) == first.checksum
    (told,) = context.troubles.told()
    assert second.key in told


class OneRound(threading.Event):
    """Ends a watch after its first round."""

    def wait(self, timeout: float | None = None) -> bool:
        self.set()
        return True


def test_the_watch_compares_fetches_and_opens_again_what_a_search_could_not(
    context: Context, settings: Settings, pictures: Collection
) -> None:
    fetch_copies(context, range(4))
    damaged, lost = segments(pictures, 0)[0], segments(pictures, 1)[0]
    copy = settings.local / damaged.key
    data = copy.read_bytes()
    copy.unlink()
    copy.write_bytes(data[:-1] + b"?")
    context.storage._verified.note(damaged.key, damaged.checksum, look_at(copy))
    content = (Path(settings.store) / lost.key).read_bytes()
    for place in (settings.store, settings.local):
        (Path(place) / lost.key).unlink()
    version = context.resources.current_version("pictures")
    sentences = [str(error) for error in context.resources.group_segments(version, 1).lost.values()]
    context.troubles.note_search("pictures", 1, sentences)
    watch_copies(context, range(4), OneRound())
    assert file_checksum(copy) == damaged.checksum
    (told,) = context.troubles.told()
    assert lost.key in told
    (Path(settings.store) / lost.key).write_bytes(content)
    watch_copies(context, range(4), OneRound())
    assert context.troubles.told() == []
    assert context.resources.group_segments(version, 1).lost == {}


def test_a_damaged_file_that_is_open_is_replaced_when_it_was_made_again(
    pictures: Collection, settings: Settings, folder: Path
) -> None:
    """One process, as a group worker: it has mapped what is then damaged in place."""
    expected = search(pictures, "coffee", folder).matches
    victim = segments(pictures, 1)[0]
    path = Path(settings.store) / victim.key
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        stream.write(bytes(2000))
    pictures.rebuild().wait()
    after = search(pictures, "coffee", folder)
    assert (after.complete, after.matches[0].image) == (True, expected[0].image)
    resources = pictures._driver.resources
    version = resources.current_version("pictures")
    for group in range(4):
        (opened,), lost = resources.group_segments(version, group)
        (record,) = version.group_segments(group)
        stored = ArrayFile(Path(settings.store) / record.key)
        assert np.array_equal(opened.segment.rows.codes, stored["codes"])
        assert lost == {}
