"""What a worker tells of files that it cannot read."""

from __future__ import annotations

from pipeline.errors import CorruptFileError, LostFileError
from workers.troubles import MOST_TOLD, Troubles


def test_it_is_told_until_it_is_over() -> None:
    troubles = Troubles()
    assert troubles.told() == []
    troubles.note("a", 1, [LostFileError("groups/1/x.npz", "gone")])
    troubles.note("a", None, [CorruptFileError("trees/y.npz", "cut off")])
    segment, tree = troubles.told()
    assert "groups/1/x.npz" in segment
    assert "`vantage rebuild a`" in segment
    assert "trees/y.npz" in tree
    assert troubles.knows("a", 1)
    assert not troubles.knows("a", 2)
    troubles.note_search("a", 1, [segment])  # the same, told once
    assert troubles.told() == [segment, tree]
    assert troubles.met_by_searches() == [("a", 1)]
    troubles.note_search("a", 1, [])  # a search that could read everything
    assert troubles.told() == [tree]
    troubles.note("a", None, [])
    assert troubles.told() == troubles.met_by_searches() == []


def test_a_heartbeat_holds_no_thousand_sentences() -> None:
    troubles = Troubles()
    troubles.note("a", 1, [LostFileError(f"groups/1/{i}.npz", "gone") for i in range(1000)])
    assert len(troubles.told()) == MOST_TOLD
