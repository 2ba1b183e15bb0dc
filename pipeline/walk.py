"""Finding image files below folders: the same list, in the same order, every time.

It finds every file with an image suffix below the given folders, and every given file, whatever its
suffix. Symbolic links to files and folders are followed; a folder that can be reached in two ways
is listed once, by its real path if possible, so that links cannot loop. Names that begin with a
dot, and the thumbnail folders of network storage, are skipped unless given: they contain caches and
resource forks that only look like images.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import ImageReadError, MissingRootError
from pipeline.files import is_below, outside_roots, raise_read_error, require_regular

_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")
_WEB_SUFFIXES = (".png", ".apng", ".webp", ".gif", ".avif")
_OTHER_SUFFIXES = (".tif", ".tiff", ".bmp", ".dib", ".jp2", ".j2k", ".jpx")
_NETPBM_SUFFIXES = (".pbm", ".pgm", ".ppm", ".pnm", ".pfm")
_UNDECODABLE_SUFFIXES = (".heic", ".heif", ".jxl")
IMAGE_SUFFIXES = frozenset(
    _JPEG_SUFFIXES + _WEB_SUFFIXES + _OTHER_SUFFIXES + _NETPBM_SUFFIXES + _UNDECODABLE_SUFFIXES
)
"""Suffixes of image files in folders. The last three cannot be decoded yet, but they are
photographs, and their owner must be told that they were not indexed."""

_CACHE_FOLDERS = frozenset({"@eaDir", "__MACOSX"})


@dataclass(frozen=True)
class FoundFile:
    """One file that was found.

    Attributes
    ----------
    path : str
        Absolute; undecodable bytes as surrogates (`os.fsdecode`).
    root : str
        The given file or folder that led to it, absolute.
    size : int
        Bytes; 0 if unknown.
    mtime_ns : int
        Time of the last change, nanoseconds since 1970; 0 if unknown.
    ctime_ns, inode : int
        Time of the last change of content or status; number in its file system; 0 if unknown.
    error : ImageReadError or None
        Why it cannot be read, as far as the directory entry says.
    """

    path: str
    root: str
    size: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    inode: int = 0
    error: ImageReadError | None = None


@dataclass
class Walk:
    """An iterator of `FoundFile` that counts what it skips.

    Attributes
    ----------
    skipped : int
        Files without an image suffix, so far.
    hidden : int
        Files and folders skipped because of their names (dot names, thumbnail folders), so far.
    """

    _given: list[tuple[str, bool | ImageReadError]]
    _roots: tuple[str, ...]
    skipped: int = 0
    hidden: int = 0
    _visited: set[tuple[int, int]] = field(default_factory=set)
    _files: Iterator[FoundFile] = field(init=False)

    def __post_init__(self) -> None:
        self._files = self._walk()

    @property
    def folders(self) -> list[str]:
        """The given folders, absolute."""
        return [path for path, is_folder in self._given if is_folder is True]

    def __iter__(self) -> Iterator[FoundFile]:
        return self

    def __next__(self) -> FoundFile:
        return next(self._files)

    def _walk(self) -> Iterator[FoundFile]:
        """Yield the given files, then those below the given folders."""
        given_files = {path for path, is_folder in self._given if is_folder is not True}
        for path, is_folder in self._given:
            if isinstance(is_folder, ImageReadError):
                yield _failed(path, path, is_folder)
            elif not is_folder:
                yield self._found(path, path)
        for path, is_folder in self._given:
            if is_folder is True:
                for found in self._below(path):
                    if found.path not in given_files:
                        yield found

    def _below(self, root: str) -> Iterator[FoundFile]:
        """Yield the files below one folder; linked folders come last, so that real paths win."""
        linked: deque[str] = deque()
        yield from self._folder(root, root, linked)
        while linked:
            folder = linked.popleft()
            if is_below(folder, self._roots):
                yield from self._folder(folder, root, linked)
            else:
                yield _failed(folder, root, outside_roots(folder))

    def _folder(self, folder: str, root: str, linked: deque[str]) -> Iterator[FoundFile]:
        """Yield the files of one folder and its subfolders, by name."""
        # An explicit stack: folders may be nested deeper than Python's recursion limit.
        stack = [iter(self._entries(folder, root))]
        while stack:
            entry = next(stack[-1], None)
            if entry is None:
                stack.pop()
            elif isinstance(entry, FoundFile):
                yield entry
            elif entry.name.startswith(".") or entry.name in _CACHE_FOLDERS:
                self.hidden += 1
            elif _is_folder(entry):
                if _is_link(entry):
                    linked.append(entry.path)
                else:
                    stack.append(iter(self._entries(entry.path, root)))
            elif _has_image_suffix(entry.name):
                yield self._found(entry.path, root, linked=_is_link(entry))
            else:
                self.skipped += 1

    def _entries(self, folder: str, root: str) -> Sequence[os.DirEntry[str] | FoundFile]:
        """List one folder by name, once; a folder that cannot be listed is reported like a file."""
        try:
            status = Path(folder).stat()
            identity = (status.st_dev, status.st_ino)
            if identity in self._visited:
                return []
            self._visited.add(identity)
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            return [_failed(folder, root, _as_read_error(folder, error))]

    def _found(self, path: str, root: str, *, linked: bool = True) -> FoundFile:
        """Check one file; its folder was checked before, so only a link can lead outside."""
        try:
            status = Path(path).stat()
            require_regular(path, status.st_mode)
        except OSError as error:
            return _failed(path, root, _as_read_error(path, error))
        except ImageReadError as error:
            return _failed(path, root, error)
        except (ValueError, OverflowError) as error:
            sentence = f"the file system says something impossible of it: {error}"
            return _failed(path, root, ImageReadError(path, "read-error", sentence))
        if linked and not is_below(path, self._roots):
            return _failed(path, root, outside_roots(path))
        return FoundFile(
            path, root, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
        )


def _failed(path: str, root: str, error: ImageReadError) -> FoundFile:
    """Return a file that cannot be read."""
    return FoundFile(path, root, error=error)


def walk(paths: Iterable[str | Path], *, roots: Sequence[str] = ("/",)) -> Walk:
    """Find the image files below folders.

    Parameters
    ----------
    paths : iterable of str or Path
        Folders, searched recursively, and files.
    roots : sequence of str, default ("/",)
        Folders that may contain images, links resolved; default: anywhere.

    Returns
    -------
    Walk
        Iterator of `FoundFile`; given files first, then folder by folder, sorted by name. A given
        path that cannot be used is among them, with its error: the others are not at fault.

    Raises
    ------
    MissingRootError
        A given path that does not look like an image file does not exist.
    """
    given: dict[str, bool | ImageReadError] = {}
    for path in paths:
        # abspath, not realpath: the caller's names are kept.
        name = os.path.abspath(os.fspath(path))  # noqa: PTH100
        try:
            given[name] = _judge_given(name, roots)
        except ImageReadError as error:
            given[name] = error
    return Walk(list(given.items()), tuple(roots))


def _judge_given(path: str, roots: Sequence[str]) -> bool:
    """Say whether a given path is a folder; raise if it cannot be used at all."""
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not _has_image_suffix(path):
            raise MissingRootError(path) from error
        raise_read_error(path, error)
    except ValueError as error:
        raise ImageReadError(path, "vanished", f"there can be no such file: {error}") from error
    if not is_below(path, roots):
        raise outside_roots(path)
    return stat.S_ISDIR(mode)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:
        # A loop of links.
        return False


def _is_link(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a link; yes if that cannot be known."""
    try:
        return entry.is_symlink()
    except OSError:
        return True


def _has_image_suffix(name: str) -> bool:
    """Whether a name ends like an image file's."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def _as_read_error(path: str, error: OSError) -> ImageReadError:
    """Return an operating system's error as data."""
    try:
        raise_read_error(path, error)
    except ImageReadError as read_error:
        return read_error
