from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.fusing import require_different
from pipeline.records import FoundBy, FusedResult, Match, SearchResult
from pipeline.retrieval.fuse import DEPTH, HALF_EVIDENCE, deviations, fuse


def answer(collection: str, scores: dict[str, float], **changes: object) -> SearchResult:
    """An answer of one collection; best first, ties by name as a search breaks them."""
    ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    matches = tuple(
        Match(rank, image, (f"/{collection}/{image}.jpg",), score, 2, 40, 30)
        for rank, (image, score) in enumerate(ranked, start=1)
    )
    result = SearchResult(
        matches, True, (), {"kind": "exhaustive"}, {"scan": 1.0}, {"descriptors": 5},
        collection=collection, version=3, extractor=f"of-{collection}",
    )  # fmt: skip
    return replace(result, **changes)


def noise(count: int, low: float, high: float, *, name: str = "n") -> dict[str, float]:
    """Unrelated images, their scores evenly spread."""
    return {f"{name}{i:03}": float(s) for i, s in enumerate(np.linspace(low, high, count))}


def ranked(result: FusedResult) -> list[str]:
    return [match.image for match in result.matches]


def test_deviations_are_modified_z_scores() -> None:
    scores = np.array([0.9, 0.5, 0.4, 0.3, 0.2])
    # Median 0.4; deviations 0.5, 0.1, 0, 0.1, 0.2: their median 0.1.
    wanted = 0.6745 * np.array([5.0, 1.0, 0.0, -1.0, -2.0])
    np.testing.assert_allclose(deviations(scores), wanted, atol=1e-12)


def test_deviations_of_mostly_equal_scores_take_the_mean_deviation() -> None:
    scores = np.array([0.8, 0.2, 0.2, 0.2])
    spread = 0.15 * math.sqrt(math.pi / 2)
    np.testing.assert_allclose(deviations(scores), [0.6 / spread, 0, 0, 0], atol=1e-12)


@pytest.mark.parametrize("scores", [[], [0.4], [0.4, 0.1], [0.0], [1.0] * 250])
def test_deviations_of_few_or_equal_scores_are_finite_and_in_order(scores: list[float]) -> None:
    found = deviations(np.array(scores))
    assert len(found) == len(scores)
    assert np.isfinite(found).all()
    assert (np.diff(found) <= 0).all()


def test_the_one_match_of_an_answer_stands_out() -> None:
    result = fuse([answer("a", {"x": 0.7}), answer("b", {"x": 0.6})])
    assert result.matches[0].score > 0


def test_noise_is_measured_on_the_first_matches_alone() -> None:
    scores = np.sort(np.concatenate([np.random.default_rng(1).random(DEPTH), np.full(300, 0.0)]))
    long, short = deviations(scores[::-1]), deviations(scores[::-1][:DEPTH])
    np.testing.assert_array_equal(long[:DEPTH], short[:DEPTH])


def test_what_no_answer_shows_is_no_evidence() -> None:
    result = fuse([answer("a", {"x": 2e-4, "y": 1e-6}), answer("b", {"x": 2e-4, "y": 1e-6})])
    assert result.matches[0].score < 0.3


def test_a_collection_that_knows_outweighs_one_that_does_not() -> None:
    local = noise(100, 0.001, 0.003) | {"right": 0.3}
    looks = noise(100, 0.4, 0.6, name="m") | {"right": 0.41, "wrong": 0.7}
    assert ranked(fuse([answer("a", local), answer("b", looks)]))[:2] == ["right", "wrong"]


def test_with_weak_evidence_the_image_found_by_both_is_first() -> None:
    one = noise(100, 0.4, 0.6) | {"both": 0.7, "only one": 0.72}
    other = noise(100, 0.001, 0.003) | {"both": 0.006, "only other": 0.0062}
    assert ranked(fuse([answer("a", one), answer("b", other)]))[0] == "both"


def test_a_match_says_which_collection_found_it() -> None:
    one = answer("a", {"x": 0.9, "y": 0.2, "z": 0.1})
    other = answer("b", {"x": 0.4, "w": 0.3})
    result = fuse([one, other], lacking=[{"w"}, set()])
    found = {match.image: match for match in result.matches}
    assert found["x"].found_by == (FoundBy("a", "of-a", 1, 0.9), FoundBy("b", "of-b", 1, 0.4))
    assert found["y"].found_by == (FoundBy("a", "of-a", 2, 0.2), FoundBy("b", "of-b"))
    assert found["w"].found_by[0] == FoundBy("a", "of-a", indexed=False)
    assert found["x"].locations == ("/a/x.jpg", "/b/x.jpg")
    assert (found["x"].votes, found["y"].votes) == (4, 2)
    assert result.answers == (one, other)


def test_an_image_that_one_collection_lacks_is_ranked_by_the_others() -> None:
    one = noise(100, 0.4, 0.6) | {"new": 0.9, "old": 0.8}
    other = noise(100, 0.4, 0.6, name="m") | {"old": 0.62}
    lacking = fuse([answer("a", one), answer("b", other)], lacking=[set(), {"new"}])
    silent = fuse([answer("a", one), answer("b", other)])
    assert ranked(lacking)[:2] == ["new", "old"]
    assert ranked(silent)[:2] == ["old", "new"]
    # What the one collection says alone, neither less nor more.
    alone = fuse([answer("a", one)])
    assert lacking.matches[0].score == alone.matches[0].score


def test_missing_groups_do_not_speak_against_an_image() -> None:
    one = answer("a", noise(100, 0.4, 0.6) | {"x": 0.9})
    other = answer("b", noise(100, 0.4, 0.6), complete=False, missing_groups=(2,))
    result = fuse([one, other])
    assert not result.complete
    assert result.missing_groups == {"a": (), "b": (2,)}
    alone = fuse([one])
    assert result.matches[0] == replace(
        alone.matches[0], found_by=(*alone.matches[0].found_by, FoundBy("b", "of-b"))
    )


def test_an_unlisted_image_is_as_good_as_the_last() -> None:
    one = noise(50, 0.3, 0.5)
    last = "n000"
    other = {"m0": 0.5, "m1": 0.4, "m2": 0.3, "x": 0.2, last: 0.2}
    result = fuse([answer("a", one), answer("b", other)], top=60)
    by_image = {match.image: match.score for match in result.matches}
    assert by_image["x"] == by_image[last]
    order = ranked(result)
    assert order.index(last) + 1 == order.index("x")


def test_nothing_found_is_nothing() -> None:
    result = fuse([answer("a", {}), answer("b", {})])
    assert result.matches == ()
    assert result.complete


def test_an_empty_answer_leaves_the_ranking_of_the_other() -> None:
    scores = noise(30, 0.1, 0.5)
    result = fuse([answer("a", {}), answer("b", scores)], top=30)
    assert ranked(result) == [match.image for match in answer("b", scores).matches]


def test_the_answer_as_plain_values() -> None:
    result = fuse([answer("a", {"x": 0.9}), answer("b", {"x": 0.4})])
    values = result.to_dict()
    assert values["collections"] == ["a", "b"]
    assert values["extractors"] == {"a": "of-a", "b": "of-b"}
    assert values["plans"] == {"a": {"kind": "exhaustive"}, "b": {"kind": "exhaustive"}}
    assert values["timings"] == {"a": {"scan": 1.0}, "b": {"scan": 1.0}}
    assert values["missing_groups"] == {"a": [], "b": []}
    assert values["matches"][0]["found_by"][1] == {
        "collection": "b", "extractor": "of-b", "rank": 1, "score": 0.4, "indexed": True,
    }  # fmt: skip
    assert Match.from_dict(values["matches"][0]) == result.matches[0]
    assert "found_by" not in answer("a", {"x": 0.9}).to_dict()["matches"][0]
    assert result.plan == {"kind": "exhaustive"}


def test_labels_are_extractors_unless_two_are_alike() -> None:
    one, other = answer("a", {}), answer("b", {})
    assert fuse([one, other]).labels == ("of-a", "of-b")
    assert fuse([one, replace(other, extractor="of-a")]).labels == ("a", "b")


@pytest.mark.parametrize("names", [["a", "a"], ["a", "b", "a"]])
def test_a_collection_is_not_fused_with_itself(names: list[str]) -> None:
    with pytest.raises(InputError, match="'a' is named twice and cannot be fused with itself"):
        require_different(names)


def test_fusing_takes_two() -> None:
    with pytest.raises(InputError, match="at least two collections, not 1"):
        require_different(["a"])


IMAGES = [f"{i:02}" for i in range(30)]
score_lists = st.dictionaries(
    st.sampled_from(IMAGES), st.integers(1, 10_000).map(lambda n: n / 10_000), max_size=30
)
answers = st.lists(score_lists, min_size=1, max_size=4).map(
    lambda lists: [answer(f"c{i}", scores) for i, scores in enumerate(lists)]
)


@settings(deadline=None)
@given(answers, st.randoms(use_true_random=False))
def test_the_order_of_the_collections_does_not_matter(
    answers: list[SearchResult], random: object
) -> None:
    shuffled = list(answers)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = fuse(answers, 50), fuse(shuffled, 50)
    assert [(m.image, m.score, m.locations) for m in one.matches] == [
        (m.image, m.score, m.locations) for m in other.matches
    ]


@settings(deadline=None)
@given(answers)
def test_the_best_are_the_beginning_of_all(answers: list[SearchResult]) -> None:
    everything = fuse(answers, 50).matches
    assert {match.image for match in everything} == {m.image for p in answers for m in p.matches}
    assert fuse(answers, 5).matches == everything[:5]


@settings(deadline=None)
@given(answers)
def test_scores_fall_with_the_rank_within_0_and_1(answers: list[SearchResult]) -> None:
    matches = fuse(answers, 50).matches
    scores = [match.score for match in matches]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score < 1 for score in scores)
    assert [match.rank for match in matches] == list(range(1, len(matches) + 1))


@settings(deadline=None)
@given(answers)
def test_an_image_better_everywhere_is_not_ranked_behind(answers: list[SearchResult]) -> None:
    order = ranked(fuse(answers, 50))
    places = [{match.image: match.score for match in one.matches} for one in answers]
    for behind, before in zip(order[1:], order, strict=False):
        # What is not listed is no better than the last, and perhaps no worse.
        ahead = [scores.get(behind, -1.0) >= scores.get(before, -1.0) for scores in places]
        strictly = [
            scores.get(behind, -1.0) > scores.get(before, min(scores.values(), default=0)) + 1e-6
            for scores in places
        ]
        assert not (all(ahead) and any(strictly))


@settings(deadline=None)
@given(score_lists, st.integers(1, 3))
def test_equal_images_are_ordered_by_their_hash(scores: dict[str, float], count: int) -> None:
    flat = dict.fromkeys(scores, 0.5)
    result = fuse([answer(f"c{i}", flat) for i in range(count)], 50)
    assert ranked(result) == sorted(flat)


@settings(deadline=None)
@given(score_lists)
def test_one_collection_alone_keeps_its_ranking(scores: dict[str, float]) -> None:
    only = answer("a", scores)
    assert ranked(fuse([only], 50)) == [match.image for match in only.matches]


def test_the_score_of_half_evidence_is_a_half() -> None:
    # Noise of deviation 1 / 1000 and an image that stands out of it by HALF_EVIDENCE of them.
    scores = noise(101, 0.4, 0.6)
    spread = 0.05 / 0.6745
    scores["x"] = 0.5 + HALF_EVIDENCE * spread
    scores["y"] = 0.4
    found = fuse([answer("a", scores)]).matches[0]
    assert found.image == "x"
    assert found.score == pytest.approx(0.5, abs=0.01)


def test_the_same_file_is_first_and_says_nothing_of_the_noise() -> None:
    scores = {**noise(30, 0.1, 0.2), "x": 0.9}
    other = answer("b", scores)
    known = Match(1, "s", ("/a/s.jpg",), 0.0, 0, 0, 0, same_file=True)
    alone = replace(answer("a", {}), matches=(known,))
    found = fuse([alone, other], 50)
    assert ranked(found) == ["s", *ranked(fuse([other], 50))]
    assert [match.same_file for match in found.matches[:2]] == [True, False]
    assert [match.score for match in found.matches[1:]] == [
        match.score for match in fuse([other], 50).matches
    ]
    # It has a low score in one collection and is not known to another.
    low = Match(1, "n003", (), scores["n003"], 2, 0, 0, same_file=True)
    moved = [low, *(match for match in other.matches if match.image != "n003")]
    assert ranked(fuse([replace(other, matches=tuple(moved))], 50))[:2] == ["n003", "x"]


def test_locations_keep_what_is_known_of_them() -> None:
    def of(name: str, **states: str) -> SearchResult:
        match = Match(1, "s", tuple(states), 0.5, 3, 4, 4, location_states=tuple(states.values()))
        return replace(answer(name, {}), matches=(match,))

    (match,) = fuse([of("a", x="unknown", y="gone"), of("b", x="present", z="unknown")]).matches
    assert match.locations == ("x", "z", "y")
    assert match.location_states == ("present", "unknown", "gone")
