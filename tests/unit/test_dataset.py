"""The ground truth reader, the rules of right, wrong and neutral, and a whole evaluation run."""

import json
from pathlib import Path

import pytest

from pipeline.errors import InputError, StateError, UnknownNameError
from pipeline.evaluation import read_dataset, run_evaluation
from pipeline.records import Match, SearchResult

SHARED = Path(__file__).parents[3] / "shared" / "photos"

COVERS = {
    "images": [
        "ref/1.jpg",
        "ref/2.jpg",
        "droid/1.jpg",
        "droid/2.jpg",
        "nokia/1.jpg",
        "other/a.jpg",
    ],
    "relevant": {
        "droid/1.jpg": ["ref/1.jpg"],
        "droid/2.jpg": ["ref/2.jpg"],
        "nokia/1.jpg": ["ref/1.jpg"],
    },
}
SCENES = {
    "images": ["a/1.jpg", "a/2.jpg", "a/3.jpg", "b/1.jpg"],
    "relevant": {
        "a/1.jpg": ["a/2.jpg", "a/3.jpg"],
        "a/2.jpg": ["a/1.jpg", "a/3.jpg"],
        "a/3.jpg": ["a/1.jpg", "a/2.jpg"],
    },
}


@pytest.fixture
def write(tmp_path):
    """Write a ground truth and an empty file for each image it names; return the folder."""

    def write(truth, *more):
        for path in [*truth.get("images", []), *more]:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
        (tmp_path / "groundtruth.json").write_text(json.dumps(truth))
        return tmp_path

    return write


def by_path(dataset):
    return {query.path: query for query in dataset.queries}


def test_photographs_that_only_ask_are_not_indexed(write):
    dataset = read_dataset(write(COVERS))
    assert dataset.database == ("other/a.jpg", "ref/1.jpg", "ref/2.jpg")
    assert dataset.distractors == {"other/a.jpg"}
    assert [query.path for query in dataset.queries] == list(COVERS["relevant"])
    assert dataset.subsets == ("droid", "nokia")


def test_queries_that_answer_each_other_are_indexed_and_neutral_to_themselves(write):
    dataset = read_dataset(write(SCENES))
    assert dataset.database == ("a/1.jpg", "a/2.jpg", "a/3.jpg", "b/1.jpg")
    query = by_path(dataset)["a/1.jpg"]
    assert query.relevant == {"a/2.jpg", "a/3.jpg"}
    assert query.neutral == {"a/1.jpg"}


def test_another_photograph_of_the_same_thing_is_neutral_when_it_is_indexed(write):
    dataset = read_dataset(write(COVERS | {"database": COVERS["images"]}))
    assert by_path(dataset)["droid/1.jpg"].neutral == {"droid/1.jpg", "nokia/1.jpg"}
    assert by_path(dataset)["droid/2.jpg"].neutral == {"droid/2.jpg"}


def test_listed_neutral_images_replace_the_rule(write):
    truth = COVERS | {"database": COVERS["images"], "neutral": {"droid/1.jpg": ["other/a.jpg"]}}
    queries = by_path(read_dataset(write(truth)))
    assert queries["droid/1.jpg"].neutral == {"droid/1.jpg", "other/a.jpg"}
    assert queries["nokia/1.jpg"].neutral == {"nokia/1.jpg"}


def test_a_right_answer_that_is_not_indexed_does_not_count(write):
    truth = SCENES | {
        "database": ["a/2.jpg", "b/1.jpg"],
        "relevant": {"a/1.jpg": ["a/2.jpg", "a/3.jpg"]},
    }
    assert by_path(read_dataset(write(truth)))["a/1.jpg"].relevant == {"a/2.jpg"}


def test_a_query_listed_as_its_own_answer_is_not_one(write):
    truth = SCENES | {"relevant": {"a/1.jpg": ["a/1.jpg", "a/2.jpg"]}}
    query = read_dataset(write(truth)).queries[0]
    assert query.relevant == {"a/2.jpg"}
    assert query.neutral == {"a/1.jpg"}


def test_a_query_need_not_be_among_the_images(write):
    truth = {"images": ["ref.jpg"], "relevant": {"phone.jpg": ["ref.jpg"]}}
    dataset = read_dataset(write(truth, "phone.jpg"))
    assert dataset.database == ("ref.jpg",)
    assert dataset.subsets == ("all",)


def test_no_match_queries_expect_nothing(write):
    dataset = read_dataset(write(COVERS | {"no_match_queries": ["other/a.jpg"]}))
    assert "other/a.jpg" not in dataset.database
    assert by_path(dataset)["other/a.jpg"].expects_nothing


def test_parts_may_list_queries_or_prefixes_and_counts_are_notes(write):
    subsets = {
        "counted": {"images": 6, "queries": 3, "MB": 1.5},
        "first": {"queries": ["droid/1.jpg"]},
        "phones": {"prefixes": ["droid", "nokia/"]},
    }
    dataset = read_dataset(write(COVERS | {"parts": subsets}))
    assert {query.path: query.subset for query in dataset.queries} == {
        "droid/1.jpg": "first",
        "droid/2.jpg": "phones",
        "nokia/1.jpg": "phones",
    }


def test_selecting_parts_keeps_their_answers_and_all_distractors(write):
    dataset = read_dataset(write(COVERS)).select(["nokia"])
    assert [query.path for query in dataset.queries] == ["nokia/1.jpg"]
    assert dataset.database == ("other/a.jpg", "ref/1.jpg")
    with pytest.raises(UnknownNameError, match="did you mean 'nokia'"):
        read_dataset(dataset.root).select(["nokai"])


def test_the_file_itself_names_the_data_set_too(write):
    folder = write(COVERS)
    assert read_dataset(folder / "groundtruth.json") == read_dataset(str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": []}, r"key 'image' is not known; did you mean 'images'\?"),
        ({"images": "a"}, "images must be a list of paths, not a text"),
        ({"images": ["a/1.jpg", 3]}, "images has 3; each entry must be a path"),
        ({"images": ["a/1.jpg", "a/1.jpg"]}, "images has 'a/1.jpg' twice"),
        ({"images": ["/etc/passwd"]}, "'/etc/passwd'; paths must stay inside the folder"),
        ({"images": ["a/../../x.jpg"]}, "paths must stay inside the folder"),
        ({"relevant": []}, "'relevant' must be an object of lists, not a list"),
        ({"relevant": {}}, "there is no query"),
        ({"relevant": {"a/1.jpg": "a/2.jpg"}}, "relevant of 'a/1.jpg' must be a list"),
        ({"relevant": {"a/1.jpg": []}}, "query 'a/1.jpg' has no relevant image that is indexed"),
        ({"relevant": {"a/1.jpg": ["a/2.jpeg"]}}, "'a/2.jpeg', which 'images' does not list; did"),
        ({"database": ["c.jpg"]}, "database has 'c.jpg', which 'images' does not list"),
        ({"database": []}, "no image is left to index"),
        ({"neutral": {"b/1.jpg": []}}, "'neutral' has 'b/1.jpg', which is not a query"),
        ({"neutral": {"a/1.jpg": ["x"]}}, "neutral of 'a/1.jpg' has 'x'"),
        ({"no_match_queries": ["a/1.jpg"]}, "is in 'no_match_queries' and has relevant images"),
        ({"parts": []}, "'parts' must be an object, not a list"),
        ({"parts": {"a": 3}}, "subset 'a' must be an object, not a number"),
        ({"parts": {"a": {"queries": "x"}}}, "queries of subset 'a' must be a list of paths"),
    ],
)
def test_a_malformed_file_is_refused_by_name(write, change, message):
    folder = write(SCENES)
    (folder / "groundtruth.json").write_text(json.dumps(SCENES | change))
    with pytest.raises(InputError, match=message) as caught:
        read_dataset(folder)
    assert "groundtruth.json" in str(caught.value)


def test_missing_things_are_named(tmp_path, write):
    with pytest.raises(InputError, match="is not a folder"):
        read_dataset(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no groundtruth\.json"):
        read_dataset(tmp_path)
    folder = write(SCENES)
    (folder / "a/2.jpg").unlink()
    with pytest.raises(InputError, match=r"no file lies at 'a/2\.jpg'"):
        read_dataset(folder)
    for text, message in [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "must be a JSON object, not a list"),
        ('{"relevant": {}}', "key 'images' is missing"),
        ('{"images": []}', "key 'relevant' is missing"),
    ]:
        (folder / "groundtruth.json").write_text(text)
        with pytest.raises(InputError, match=message):
            read_dataset(folder)
    (folder / "groundtruth.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(InputError, match="is not JSON"):
        read_dataset(folder)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the private evaluation photographs are not here")
def test_the_private_data_set_indexes_reference_covers_and_distractors():
    dataset = read_dataset(SHARED).select(["dvd"])
    assert len(dataset.queries) == 200
    assert {path for path in dataset.database if path.startswith("dvd/")} == {
        f"dvd/Reference/{number:03}.jpg" for number in range(1, 101)
    }
    assert len(dataset.distractors) == 2418
    assert all(query.neutral == {query.path} for query in dataset.queries)


def answer(dataset, *paths, share=0.5, complete=True):
    """Return a search result that lists images of the data set in this order."""
    matches = tuple(
        Match(rank, f"{rank:064}", (str(dataset.file(path)),), 1 / rank, 10, 4, 3)
        for rank, path in enumerate(paths, start=1)
    )
    plan = {"kind": "probed", "cells": 8, "cells_probed": 2.0, "scanned_share": share}
    return SearchResult(matches, complete, () if complete else (1,), plan, {})


def test_a_run_judges_every_query_and_reports_per_subset(write):
    dataset = read_dataset(write(COVERS | {"no_match_queries": ["other/a.jpg"]}, "stray.jpg"))
    answers = {
        "droid/1.jpg": answer(dataset, "ref/1.jpg", "ref/2.jpg", share=0.1),
        "droid/2.jpg": answer(dataset, "stray.jpg", "ref/2.jpg", share=0.3),
        "nokia/1.jpg": answer(dataset, "ref/2.jpg", complete=False),
        "other/a.jpg": answer(dataset, share=0.1),
    }
    asked = []

    def search(path):
        asked.append(path.relative_to(dataset.root).as_posix())
        return answers[asked[-1]]

    seen = []
    report = run_evaluation(
        dataset, search, plan="probed", top=5, progress=lambda *done: seen.append(done)
    )
    assert asked == ["droid/1.jpg", *answers], "one search to warm up, then each query once"
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]

    values = json.loads(json.dumps(report.to_dict()))
    assert values["parts"]["droid"]["mAP"] == 0.75
    assert values["parts"]["droid"]["recall@1"] == 0.5
    assert values["parts"]["droid"]["recall@10"] == 1
    assert values["parts"]["droid"]["scanned_share"] == pytest.approx(0.2)
    assert values["parts"]["nokia"]["mAP"] == 0
    assert values["parts"]["nokia"]["incomplete"] == 1
    assert values["parts"]["other"]["no_match_right"] == 1
    assert values["parts"]["other"]["mAP"] is None
    overall = values["overall"]
    assert overall["mAP"] == pytest.approx(0.5)
    assert overall["recall@1"] == pytest.approx(1 / 3, abs=1e-6)
    assert overall["found@100"] == pytest.approx(2 / 3, abs=1e-6)
    assert overall["queries"] == 3
    assert 0 < overall["p50_ms"] <= overall["p95_ms"]
    assert values["plan"] == "probed"
    assert values["plans_run"] == {"probed": 4}
    assert values["cells"] == 8
    assert values["cells_probed"] == 2
    assert (values["database_images"], values["top"], values["errors"]) == (2, 5, [])


def test_an_unreadable_query_counts_as_found_nothing_and_other_errors_end_the_run(write):
    dataset = read_dataset(write(COVERS))

    def search(path):
        if path.parent.name == "nokia":
            raise InputError("no keypoint in it")
        return answer(dataset, "ref/" + path.name)

    report = run_evaluation(dataset, search)
    assert report.overall.failed == 1
    assert report.overall.recall[1] == pytest.approx(2 / 3)
    assert report.to_dict()["errors"] == [{"query": "nokia/1.jpg", "error": "no keypoint in it"}]

    def broken(path):
        raise StateError("no worker")

    with pytest.raises(StateError):
        run_evaluation(dataset, broken)


def test_matches_are_recognised_however_their_folder_is_written(write, tmp_path_factory):
    folder = write(SCENES)
    link = tmp_path_factory.mktemp("elsewhere") / "link"
    link.symlink_to(folder)
    through_link = read_dataset(link)
    plain = read_dataset(folder)
    for asked, answered in [(through_link, plain), (plain, through_link)]:
        result = answer(answered, "a/1.jpg", "a/2.jpg", "a/3.jpg")
        report = run_evaluation(asked.select(["a"]), lambda path, result=result: result)
        assert report.overall.mean_average_precision == 1.0
        assert report.outcomes[0].matches == 2, "the query itself is taken out"


def test_two_copies_of_an_answer_at_one_rank_are_both_found(write):
    dataset = read_dataset(write(SCENES))
    both = tuple(str(dataset.file(path)) for path in ("a/2.jpg", "a/3.jpg"))
    result = SearchResult((Match(1, "0" * 64, both, 1.0, 9, 1, 1),), True, (), {}, {})
    outcome = run_evaluation(dataset, lambda path: result).outcomes[0]
    assert (outcome.path, outcome.average_precision, outcome.found[10]) == ("a/1.jpg", 1.0, 1.0)
