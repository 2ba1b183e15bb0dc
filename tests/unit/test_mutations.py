"""Damaged files and messages: refused with an error of ours, or harmless; no crash, no read beyond.

`tests/mutations.py` makes them and uses them, in a process of its own, which may die.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from core_data import assign, collection, model, segments
from heavy import LONG
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from pipeline.containers import read_container
from pipeline.errors import CorruptFileError
from pipeline.index.model import Model
from pipeline.index.segments import AssignedRows, Segment
from pipeline.retrieval.batch import Batch
from pipeline.retrieval.blocks import GroupScan

PROGRAM = Path(__file__).parents[1] / "mutations.py"
COUNT = 100_000 if LONG else 600
SEED = 1


def run(count: int, seed: int, **environment: str) -> dict[str, int]:
    """Try so many mutations; return how many were refused and used, by what they were made of."""
    paths = [str(Path(__file__).parent), str(PROGRAM.parent)]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(seed), str(count)],
        capture_output=True,
        text=True,
        timeout=7200,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
    )
    assert done.returncode == 0, f"status {done.returncode}\n{done.stderr}"
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def seed(request: pytest.FixtureRequest) -> int:
    """That of the run, if it has one."""
    given_seed = request.config.getoption("--hypothesis-seed", default=None)
    return SEED if given_seed in (None, "random") else int(given_seed)


@pytest.mark.parametrize(
    "checked", [False, pytest.param(True, marks=pytest.mark.skipif(not LONG, reason="compiles"))]
)
def test_mutated_files_and_messages_are_refused_or_harmless(
    seed: int, checked: bool, tmp_path: Path
) -> None:
    """With the real kernels, and with those that numba has compiled to check every index."""
    environment = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)} if checked else {}
    found = run(COUNT, seed, **environment)
    assert sum(found.values()) == COUNT
    kinds = {name.partition(":")[0] for name in found}
    assert len(kinds) == 14
    # Each kind was refused often, and was also used: the checks are neither blind nor blunt.
    for kind in kinds - {"result"}:
        assert found.get(f"{kind}: refused", 0) + found.get(f"{kind}: used", 0) > COUNT // 40
        assert found.get(f"{kind}: used", 0) > COUNT // 200, (kind, found)


def whole(name: str) -> dict[str, NDArray[Any]]:
    if name == "segment":
        return segments()[2].to_arrays()
    return model().to_arrays() if name == "model" else assign(model(), collection()).to_arrays()


READERS = {"segment": Segment, "model": Model, "assignment": AssignedRows}


@pytest.mark.parametrize("name", READERS)
@settings(deadline=None)
@given(data=st.data())
def test_any_array_in_the_place_of_another_is_refused_or_fits(name: str, data: Any) -> None:
    arrays = whole(name)
    victim = data.draw(st.sampled_from(sorted(arrays)))
    given_shape = arrays[victim].shape
    shapes = st.just(given_shape) | hnp.array_shapes(min_dims=0, max_dims=5, min_side=0)
    dtype = data.draw(
        st.just(arrays[victim].dtype)
        | hnp.integer_dtypes(endianness="<")
        | hnp.floating_dtypes(endianness="<", sizes=(32, 64))
        | hnp.boolean_dtypes()
    )
    made = data.draw(hnp.arrays(dtype, data.draw(shapes)))
    refused = ""
    try:
        READERS[name].from_arrays({**arrays, victim: made})
    except CorruptFileError as error:
        refused = error.args[1]
    fits = (made.shape[1:], made.dtype) == (given_shape[1:], arrays[victim].dtype)
    assert fits or len(refused) > 5


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("segment", {"cell_offsets": np.array([0, 5], np.int64)}, "do not rise from 0 to"),
        ("segment", {"first_cell": np.array([-1], np.int64)}, "cells from -1 on"),
        ("segment", {"images": np.full(260, 31, np.uint32)}, "images hold|images is|is"),
        ("segment", {"norms": np.full(272, -1, np.int32)}, "norms"),
        ("segment", {"codes": np.zeros((17, 15, 16, 4), np.uint8)}, "codes"),
        ("model", {"radii": np.full(15, np.nan, np.float32)}, "radii are not all finite"),
        ("model", {"counts": np.array([300, 3], np.int64)}, "3 groups do not divide"),
        ("model", {"counts": np.array([0, 4], np.int64)}, "background sample has 0 rows"),
        ("model", {"scale": np.array([0.0])}, "its scale is 0"),
        ("model", {"mean_codes": np.zeros((0, 16, 16, 4), np.uint8)}, "mean_codes"),
        ("assignment", {"group_offsets": np.array([0, 1, 2, 3, 2**40], np.int64)}, "do not rise"),
    ],
)
def test_what_is_wrong_is_said(name: str, change: dict[str, NDArray[Any]], sentence: str) -> None:
    with pytest.raises(CorruptFileError, match=sentence):
        READERS[name].from_arrays({**whole(name), **change})
    for missing in whole(name):
        if missing.startswith("mean_") and missing != "mean_codes":
            continue
        left = {one: array for one, array in whole(name).items() if one != missing}
        if missing == "mean_codes":  # then the leaves of the tree are the cells
            READERS[name].from_arrays(left)
            continue
        with pytest.raises(CorruptFileError):
            READERS[name].from_arrays(left)


def test_nothing_at_all_is_refused_by_every_reader() -> None:
    for read in (
        *(lambda one=one: one.from_arrays({}) for one in READERS.values()),
        lambda: read_container({}, {}),
        lambda: Batch.from_arrays({}, {}),
        lambda: GroupScan.from_arrays({}, {}, 1),
    ):
        with pytest.raises(CorruptFileError):
            read()
