"""Decoding in child processes: the same pixels, and bad files harm only the child."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from bombs import flat_png, flat_webp, many_scans, resized_header
from PIL import Image

from pipeline.config import ImageLimits
from pipeline.decoders import BudgetExceededError, decode, try_decode
from pipeline.decoders.memory_budget import MemoryBudget
from pipeline.decoders.pool import DecoderPool
from pipeline.decoders.process import DecoderProcess
from pipeline.errors import DecoderUnavailableError, ImageReadError
from pipeline.images import decode_image

LIMITS = ImageLimits()
SCANS = many_scans(60_000)
"""Far more than any budget here: nothing depends on how fast the machine is."""


def picture(kind: str = "JPEG", side: int = 300) -> bytes:
    random = np.random.default_rng(1)
    stream = io.BytesIO()
    pixels = random.integers(0, 256, (side, side + 60, 3), np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def failure(data: bytes, limits: ImageLimits = LIMITS) -> ImageReadError:
    with pytest.raises(ImageReadError) as caught:
        decode(data, name="a picture", limits=limits, max_side=1024)
    assert caught.value.args[0] == "a picture"
    return caught.value


def request(**changes: object) -> dict[str, object]:
    wanted = {"limits": LIMITS.to_dict(), "max_side": 1024, "color": False}
    return {**wanted, "seconds": 30.0, "memory": 2**28, **changes}


def children() -> list[psutil.Process]:
    """The decoders that this process has."""
    found = psutil.Process().children()
    return [child for child in found if "pipeline.decoders.child" in " ".join(child.cmdline())]


@pytest.fixture
def decoder() -> Iterator[DecoderProcess]:
    process = DecoderProcess()
    yield process
    process.close()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF"])
@pytest.mark.parametrize("color", [False, True])
def test_pixels_are_those_of_decoding_in_this_process(kind: str, color: bool) -> None:
    data = picture(kind)
    here = decode_image(data, name="x", limits=LIMITS, max_side=200, color=color)
    there = decode(data, name="x", limits=LIMITS, max_side=200, color=color)
    assert np.array_equal(here.pixels, there.pixels)
    assert (there.width, there.height, there.name) == (here.width, here.height, "x")


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"", "empty-file"), (b"text", "not-an-image"), (picture()[:3000], "truncated")],
)
def test_an_error_keeps_its_code_and_names_the_file(data: bytes, code: str) -> None:
    assert failure(data).code == code


def test_a_jpeg_of_thousands_of_scans_is_too_slow_and_the_next_picture_is_decoded() -> None:
    limits = ImageLimits(decode_seconds=0.3)
    error = failure(SCANS, limits)
    assert (error.code, type(error)) == ("too-slow", BudgetExceededError)
    assert "0.3 s of processor time" in error.sentence
    with pytest.raises(BudgetExceededError, match=r"0\.9 s"):
        try_decode(SCANS, name="x", limits=limits, max_side=99, alone=True)
    assert decode(picture(), name="x", limits=LIMITS, max_side=99).width == 360


@pytest.mark.parametrize(
    "data",
    [flat_webp(14_000, 14_000), flat_png(9_000, 9_000)]
    + [
        resized_header(kind, 14_000, 14_000)
        for kind in ("TIFF", "BMP", "PPM", "GIF", "AVIF", "JPEG2000")
    ],
    ids=["WEBP", "PNG", "TIFF", "BMP", "PPM", "GIF", "AVIF", "JPEG2000"],
)
def test_what_would_take_more_than_the_bound_is_refused_by_its_header(data: bytes) -> None:
    error = failure(data, ImageLimits(decode_memory=2**28))
    assert error.code == "too-much-memory"
    assert "VANTAGE_DECODE_MEMORY" in error.sentence
    assert max(child.memory_info().rss for child in children()) < 2**28


def test_a_webp_of_34_bytes_that_fits_the_bound_is_decoded() -> None:
    data = flat_webp(5_000, 5_000)
    assert len(data) == 34
    assert decode(data, name="x", limits=LIMITS, max_side=64).width == 5_000


def test_a_child_takes_no_more_than_it_was_granted(decoder: DecoderProcess) -> None:
    with pytest.raises(BudgetExceededError) as caught:
        decoder.ask(flat_png(5_000, 5_000), request(memory=1), lambda needed: needed // 4)
    assert caught.value.code == "too-much-memory"


def test_what_a_dead_child_had_is_its_failure_alone(
    decoder: DecoderProcess, eventually: Callable[..., object]
) -> None:
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(decoder.ask, SCANS, request(), lambda needed: needed)
        child = psutil.Process(decoder._child.pid)
        eventually(lambda: child.cpu_times().user > 1 or asked.done(), 60)
        child.send_signal(signal.SIGSEGV)
        with pytest.raises(BudgetExceededError, match="SIGSEGV") as caught:
            asked.result(60)
    assert caught.value.code == "kills-worker"


def test_a_child_that_ended_meanwhile_is_replaced() -> None:
    decode(picture(), name="x", limits=LIMITS, max_side=99)
    for child in children():
        child.kill()
        child.wait()
    assert decode(picture(), name="x", limits=LIMITS, max_side=99).width == 360


def test_a_child_that_was_started_early_decodes_the_first_image() -> None:
    fresh = DecoderPool(2)
    before = {child.pid for child in children()}
    fresh.start_early()
    fresh.start_early()
    started = {child.pid for child in children()} - before
    assert len(started) == 1
    fresh.decode(picture(), request(), alone=False)
    assert {child.pid for child in children()} - before == started
    fresh.close()


def test_a_child_that_does_not_start_is_not_the_images_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr("pipeline.decoders.process._CHILD", "raise SystemExit(3)")
    with pytest.raises(DecoderUnavailableError, match="status 3"):
        DecoderPool().decode(picture(), request(), alone=False)


def test_an_interrupted_wait_ends_the_child_and_leaves_nothing_open() -> None:
    fresh = DecoderPool(1)
    fresh.decode(picture(), request(), alone=False)

    def count() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), len(children())

    before = count()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            fresh.decode(SCANS, request(), alone=False)
    finally:
        signal.signal(signal.SIGALRM, former)
    assert fresh.memory.used == 0
    fresh.decode(picture(), request(), alone=False)
    assert count() == before
    fresh.close()


def _decode_in_a_fork(answers: multiprocessing.SimpleQueue[int]) -> None:
    answers.put(decode(picture(), name="x", limits=LIMITS, max_side=99).width)


def test_a_forked_process_has_decoders_of_its_own() -> None:
    decode(picture(), name="x", limits=LIMITS, max_side=99)
    mine = children()
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=_decode_in_a_fork, args=(answers,))
    child.start()
    assert answers.get() == 360
    child.join(60)
    assert child.exitcode == 0
    assert decode(picture(), name="x", limits=LIMITS, max_side=99).width == 360
    assert {c.pid for c in mine} <= {c.pid for c in children()}


def test_a_decoder_dies_with_its_parent_in_the_middle_of_a_decode(
    tmp_path: Path, eventually: Callable[..., object]
) -> None:
    path = tmp_path / "slow.jpg"
    path.write_bytes(SCANS)
    code = (
        "import sys; from pathlib import Path; from pipeline.config import ImageLimits\n"
        "from pipeline.decoders import decode\n"
        f"data = Path({str(path)!r}).read_bytes()\n"
        "decode(data, name='x', limits=ImageLimits(decode_seconds=3000), max_side=99)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        look = psutil.Process(parent.pid)
        eventually(look.children, 60)
        child = look.children()[0]
        eventually(lambda: child.cpu_times().user > 1, 60)
    finally:
        parent.kill()
        parent.wait()
    eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_a_decoder_knows_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VANTAGE_REDIS_URL", "redis://:secret@127.0.0.1")
    process = DecoderProcess()
    try:
        assert process.ask(picture(), request(), lambda needed: needed)[0].ndim == 2
        environment = Path(f"/proc/{process._child.pid}/environ").read_bytes()
        assert b"secret" not in environment
        assert b"secret" not in json.dumps(psutil.Process(process._child.pid).cmdline()).encode()
    finally:
        process.close()


def test_threads_share_a_few_decoders_and_nothing_is_left_taken() -> None:
    fresh = DecoderPool(2)
    with ThreadPoolExecutor(8) as threads:
        asked = [
            threads.submit(fresh.decode, picture(), request(), alone=number % 5 == 0)
            for number in range(20)
        ]
        assert {done.result(120)[0].shape for done in asked} == {(300, 360)}
    assert len(fresh._all) <= 2
    assert fresh.memory.used == 0
    fresh.close()


def test_a_large_decode_waits_for_others_and_is_not_overtaken_for_ever() -> None:
    ledger, first, order = MemoryBudget(), threading.Event(), []

    def take(name: str, size: int) -> None:
        with ledger.taken(size, 100):
            order.append(name)

    with ledger.taken(60, 100):
        large = threading.Thread(target=take, args=("large", 50))
        large.start()
        while not ledger._waiting:
            first.wait(0.01)
        small = threading.Thread(target=take, args=("small", 10))
        small.start()
        while len(ledger._waiting) < 2:
            first.wait(0.01)
        assert order == []
    large.join(20)
    small.join(20)
    assert order == ["large", "small"]
    assert ledger.used == 0


def test_two_that_wait_for_more_do_not_wait_for_each_other() -> None:
    ledger = MemoryBudget()

    def grow() -> int:
        with ledger.taken(50, 100) as taken:
            together.wait(20)
            return taken.resize(1000)

    together = threading.Barrier(2)
    with ThreadPoolExecutor(2) as threads:
        assert [asked.result(20) for asked in [threads.submit(grow) for _ in range(2)]] == [100] * 2
    assert ledger.used == 0


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "group4"])
def test_lines_of_the_libraries_do_not_reach_the_terminal(
    compression: str, capfd: pytest.CaptureFixture[str]
) -> None:
    stream = io.BytesIO()
    with Image.open(io.BytesIO(picture("PNG"))) as opened:
        opened.convert("1" if compression == "group4" else "RGB").save(
            stream, "TIFF", compression=compression
        )
    data = bytearray(stream.getvalue())
    data[500:600] = bytes(byte ^ 0xFF for byte in data[500:600])
    with contextlib.suppress(ImageReadError):
        try_decode(bytes(data), name="x", limits=LIMITS, max_side=200)
    assert capfd.readouterr() == ("", "")
    with contextlib.suppress(ImageReadError):  # in this process they would
        decode_image(bytes(data), name="x", limits=LIMITS, max_side=200, color=False)
    assert "ode" in capfd.readouterr().err
