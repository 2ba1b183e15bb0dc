"""The note about compiled kernels is valid only for their sources and machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workers import compiled
from workers.compiled import are_compiled, note_compiled


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "index").mkdir()
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "index" / "kernels.py").write_text("one")
    monkeypatch.setattr(compiled, "_SOURCES", tmp_path)
    monkeypatch.setattr(compiled, "machine_code_folder", lambda: tmp_path / "__pycache__")
    return tmp_path


def test_the_note_holds_until_a_source_changes(sources: Path) -> None:
    assert not are_compiled()
    note_compiled()
    assert are_compiled()
    (sources / "index" / "kernels.py").write_text("another")
    assert not are_compiled()


def test_the_note_goes_with_the_cache(sources: Path) -> None:
    note_compiled()
    for path in (sources / "__pycache__").iterdir():
        path.unlink()
    assert not are_compiled()


def test_numbas_settings_and_another_processor_count(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note_compiled()
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    assert not are_compiled()
    monkeypatch.delenv("NUMBA_CPU_NAME")
    assert are_compiled()
    monkeypatch.setattr(compiled, "_processor", lambda: ["flags: none"])
    assert not are_compiled()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_where_nothing_can_be_written_nothing_is_noted(sources: Path) -> None:
    (sources / "__pycache__").chmod(0o500)
    note_compiled()
    assert not are_compiled()
