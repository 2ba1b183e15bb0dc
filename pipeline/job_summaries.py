"""Sentences for users about an ended job, by its kind."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.text import counted, seconds


def indexed(collection: str, counters: Mapping[str, int], took: float) -> list[str]:
    """Say what became of the files."""
    count = counters.get
    seen = count("files_seen", 0)
    lines = [
        f"{counted(seen, 'file')} found, {count('files_unchanged', 0):,} unchanged; "
        f"{counted(count('images_extracted', 0), 'image')} added in {seconds(took)}."
    ]
    if not seen:
        lines = [f"No image file was found in {seconds(took)}."]
    if count("skipped", 0):
        lines.append(f"{counted(count('skipped', 0), 'file')} without an image's suffix left out.")
    if count("images_removed", 0):
        lines.append(f"{counted(count('images_removed', 0), 'image')} gone: no file has it now.")
    if count("files_gone", 0):
        lines.append(f"{counted(count('files_gone', 0), 'file')} no longer there: answers say so.")
    if count("files_unknown", 0):
        lines.append(
            f"{counted(count('files_unknown', 0), 'file')} missing where a drive may not be "
            "mounted (an empty folder): not marked as gone. If you deleted them: --emptied."
        )
    bad = count("images_failed", 0) + count("unreadable", 0)
    if bad:
        lines.append(_unusable(collection, counted(bad, "file")))
    return lines


def rebuilt(collection: str, counters: Mapping[str, int], took: float) -> list[str]:
    """Say that there is a new index, and how many images were extracted for it."""
    lines = [f"Rebuilt {collection} in {seconds(took)}."]
    extracted, bad = counters.get("images_extracted", 0), counters.get("images_failed", 0)
    if extracted or bad:
        lines.append(f"{counted(extracted, 'image')} extracted anew.")
    if bad:
        lines.append(_unusable(collection, counted(bad, "image")))
    return lines


def _unusable(collection: str, how_many: str) -> str:
    """Say where failures are listed."""
    return f"{how_many} could not be used: see `vantage failures {collection}`."


def compacted(collection: str, counters: Mapping[str, int], took: float) -> list[str]:
    """Say what was merged and what remains."""
    lines = [f"Nothing to merge: no group of {collection} has more than one segment."]
    if "segments_merged" in counters:
        before, after = counters["segments_merged"], counters["segments_made"]
        lines = [f"Merged {counted(before, 'segment')} into {after:,} in {seconds(took)}."]
    if counters.get("images_dropped"):
        lines.append(f"Rows of {counted(counters['images_dropped'], 'removed image')} left out.")
    if counters.get("images_left_to_rebuild"):
        kept = counted(counters["images_left_to_rebuild"], "removed image")
        lines.append(f"Rows of {kept} kept: a rebuild is under way. Run it again after that.")
    elif counters.get("images_left"):
        more = counted(counters["images_left"], "removed image")
        lines.append(f"Rows of {more} more: run it again.")
    return lines
