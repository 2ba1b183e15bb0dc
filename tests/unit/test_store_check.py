"""What `vantage status` sees of the files of the store, however many there are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline import store_check
from pipeline.metadata.files import KnownFile


def test_few_files_are_looked_at_and_the_others_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    containers = [f"containers/{n % 3}/{n:04}.npz" for n in range(300)]
    segments = [f"groups/{n}/a.npz" for n in range(10)]
    files = [KnownFile("c", "container", key, "0" * 64, None, True) for key in containers]
    files += [KnownFile("c", "segment", key, "0" * 64, 3, True) for key in segments]
    for file in files:
        path = tmp_path / file.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"123")
    (tmp_path / containers[7]).unlink()
    (tmp_path / containers[299]).unlink()
    (tmp_path / segments[4]).write_bytes(b"12")
    asked: list[str] = []
    stat = Path.stat

    def counted(self: Path, **options: Any) -> os.stat_result:
        asked.append(str(self))
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", counted)
    monkeypatch.setattr(store_check, "MOST_LOOKED_AT", 12)
    found = store_check._look(tmp_path, files)
    assert [(one.key, one.state) for one in found] == [
        (containers[7], "lost"), (containers[299], "lost"), (segments[4], "damaged")
    ]  # fmt: skip
    assert len(asked) <= 12 + 2


def test_a_folder_that_is_lost_or_closed_is_told_for_each_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trees").mkdir()
    keys = ("containers/1/a.npz", "containers/1/b.npz")
    files = [KnownFile("c", "container", key, "0" * 64, None, True) for key in keys]
    monkeypatch.setattr(store_check, "MOST_LOOKED_AT", 0)
    assert [one.state for one in store_check._look(tmp_path, files)] == ["lost", "lost"]
