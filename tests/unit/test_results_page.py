"""The results page: complete, self-contained, safe with any name, readable without pictures."""

import base64
import io
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from heavy import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import ImageReadError
from pipeline.records import FoundBy, FusedResult, Match, SearchResult
from pipeline.report_html import THUMBNAIL_SIDE, displayable, results_page, thumbnail_uri

VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Collects elements, text and attributes, and checks that elements close in order."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.text, self.images, self.links = [], [], [], [], []
        self.labels = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(values)
        self.links += [values[name] for name in ("src", "href", "action") if name in values]
        self.labels += [values["aria-label"]] if "aria-label" in values else []
        assert not any(name.startswith("on") for name in values)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def picture(width=64, height=48, mode="RGB", file_format="PNG", **options):
    target = io.BytesIO()
    Image.new(mode, (width, height)).save(target, file_format, **options)
    return target.getvalue()


def match(rank, *locations, score=0.5, votes=7):
    return Match(rank, f"{rank:064x}", locations, score, votes, 640, 480)


def result(*matches, complete=True, missing=(), kind="probed"):
    plan = {"kind": kind, "cells": 512, "cells_probed": 31.5, "groups": 4, "scanned_share": 0.0625}
    timings = {"extract": 20.0, "scan": 11.5, "total": 41.2}
    query = {"descriptors": 987, "width": 600, "height": 400, "digest": "d"}
    return SearchResult(matches, complete, missing, plan, timings, query, "holiday", 3)


def load(path):
    return picture()


def test_the_page_says_everything_about_a_search():
    page = Page(
        results_page(
            [("beach", picture(), result(match(1, "/photos/sea/a.jpg", "/copy/b.jpg")))], load
        )
    )
    for words in (
        "Search results",
        "1 query in collection holiday",
        "beach",
        "600 × 400 pixels",
        "probed",
        "31.5 of 512 cells",
        "6.2% of the pairs computed",
        "41 ms",
        "version 3",
        "complete",
        "a.jpg",
        "/photos/sea",
        "score 0.500",
        "7 votes",
        "1 more place",
        "/copy/b.jpg",
        "extract",
        "20.0 ms",
    ):
        assert words in page.words
    assert [image["alt"] for image in page.images] == ["Query: beach", "Match 1: a.jpg"]


def test_the_page_says_which_extractor_found_what():
    answers = tuple(
        replace(result(**values), collection=name, extractor=extractor)
        for name, extractor, values in (
            ("holiday", "sift", {}),
            ("looks", "<b>cnn</b>", {"complete": False, "missing": (2,), "kind": "exhaustive"}),
        )
    )
    found_by = (FoundBy("holiday", "sift", 4, 0.25), FoundBy("looks", "<b>cnn</b>"))
    absent = (FoundBy("holiday", "sift", 5, 0.2), FoundBy("looks", "<b>cnn</b>", indexed=False))
    fused = FusedResult(
        (
            replace(match(1, "/a.jpg"), found_by=found_by),
            replace(match(2, "/b.jpg"), found_by=absent),
        ),
        answers,
    )
    page = Page(results_page([("beach", picture(), fused)], load))
    for words in (
        "1 query in collections holiday, looks",
        "600 × 400 pixels",
        "sift + <b>cnn</b>",
        "sift: probed, 31.5 of 512 cells",
        "<b>cnn</b>: exhaustive",
        "incomplete: no answer from group <b>cnn</b> 2",
        "sift #4, score 0.250",
        "<b>cnn</b> does not list it",
        "<b>cnn</b> has not indexed it",
        "sift extract",
    ):
        assert words in page.words
    assert "votes" not in page.words


def test_nothing_comes_from_elsewhere_and_nothing_runs():
    html = results_page([("q", picture(), result(match(1, "/a.jpg")))], load)
    page = Page(html)
    assert "script" not in page.tags
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert "http://" not in html
    assert "https://" not in html
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html
    assert page.tags.count("h1") == 1
    assert {"h2", "h3", "main", "ol"} <= set(page.tags)


EVIL = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script>&amp;{{ 7*7 }}"


def test_names_cannot_become_markup():
    html = results_page(
        [(EVIL, picture(), result(match(1, f"/photos/{EVIL}.jpg", EVIL), kind=EVIL))],
        load,
        heading=EVIL,
        note=EVIL,
    )
    page = Page(html)
    assert "script" not in page.tags
    assert len(page.images) == 2
    assert "{{ 7*7 }}" in page.words
    assert page.images[0]["alt"] == f"Query: {EVIL}"


@settings(max_examples=examples(30), deadline=None)
@given(st.text(alphabet=st.characters(), max_size=30))
def test_any_name_is_shown_and_can_be_written(name):
    html = results_page([(name, b"", result(match(1, "/p/" + name)))], load)
    html.encode("utf-8")
    assert displayable(name).isprintable()
    page = Page(html)
    assert page.tags.count("section") == 1


def test_names_show_what_they_hide():
    assert displayable("two\nlines\tand \u202e reversed") == "two\\nlines\\tand \\u202e reversed"
    assert displayable("caf\udce9.jpg") == "caf\\xe9.jpg"
    assert displayable("Zürich 東京 🌊") == "Zürich 東京 🌊"


def test_no_match_and_missing_groups_are_said():
    page = Page(
        results_page(
            [
                ("one", picture(), result()),
                ("two", picture(), result(complete=False, missing=(1, 3))),
            ],
            load,
        )
    )
    assert page.words.count("No match: nothing in the collection looks like this picture") == 2
    assert "incomplete: no answer from groups 1, 3" in page.words
    assert "as far as it was searched" in page.words


def test_a_page_of_no_query_says_so():
    assert "There was no query." in Page(results_page([], load)).words


def test_two_plans_of_one_query_are_drawn_beside_one_picture(tmp_path):
    query = tmp_path / "q.png"
    query.write_bytes(picture())
    both = [("q", query, result(kind=kind)) for kind in ("probed", "exhaustive")]
    page = Page(results_page([*both, ("r", query, result())], load))
    assert page.tags.count("section") == 2
    assert page.tags.count("h3") == 3
    assert "2 queries, 3 searches" in page.words


def test_a_right_answer_is_marked():
    html = results_page(
        [("q", picture(), result(match(1, "/no.jpg"), match(2, "/yes.jpg")))],
        load,
        is_right=lambda title, found: found.locations == ("/yes.jpg",),
    )
    page = Page(html)
    assert "2 ✓" in page.words
    assert "1 ✓" not in page.words


@pytest.mark.parametrize(
    "error", [FileNotFoundError("gone"), ImageReadError("/a", "truncated", "cut short")]
)
def test_a_picture_that_cannot_be_read_has_a_placeholder(error):
    def fail(path):
        raise error

    page = Page(results_page([("q", "/nowhere.jpg", result(match(1, "/a.jpg")))], fail))
    assert page.images == []
    assert page.labels == [
        "Query: q: the picture is not available",
        "Match 1: a.jpg: the picture is not available",
    ]


def test_the_next_location_is_tried_and_an_image_is_loaded_once():
    asked = []

    def load_second(path):
        asked.append(path)
        if path == "/gone.jpg":
            raise FileNotFoundError(path)
        return picture()

    entry = ("q", picture(), result(match(1, "/gone.jpg", "/here.jpg")))
    page = Page(results_page([entry, ("r", *entry[1:])], load_second))
    assert asked == ["/gone.jpg", "/here.jpg"]
    assert len(page.images) == 4


def thumbnail(data):
    uri = thumbnail_uri(data)
    head, _, body = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(body)))


def test_thumbnails_are_small_and_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = picture(1000, 500, file_format="JPEG", exif=exif)
    assert thumbnail(data).size == (THUMBNAIL_SIDE // 2, THUMBNAIL_SIDE)
    assert thumbnail(picture(30, 20)).size == (30, 20)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "I", "F", "CMYK"])
def test_every_pixel_format_can_be_shown(mode):
    file_format = "TIFF" if mode in ("F", "CMYK", "I") else "PNG"
    assert thumbnail(picture(mode=mode, file_format=file_format)).mode == "RGB"


def test_sixteen_bit_grey_keeps_its_brightness():
    target = io.BytesIO()
    Image.fromarray(np.full((8, 8), 257 * 100, np.uint16)).save(target, "PNG")
    assert np.abs(np.asarray(thumbnail(target.getvalue()), dtype=int) - 100).max() <= 2


def test_bytes_that_are_no_image_are_refused():
    with pytest.raises(ImageReadError, match="its header is damaged"):
        thumbnail_uri(b"GIF89a")
