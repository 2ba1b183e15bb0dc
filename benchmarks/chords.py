"""Chord latency over that of bare Redis commands, for 1, 4 and 8 groups.

    python -m benchmarks.chords [--rounds 200]

A chord as a search sends it (maps that ignore their results, a body that pushes to a reply list),
with tasks that do nothing, against the same exchange in bare Redis commands: k messages pushed to
lists that an echo process pops, k answers popped, and one more pair for the reduce. Interleaved.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from statistics import median

import redis
from celery import Celery, chord

from benchmarks.common import parser, running, show
from workers.context import Context
from workers.environment import environment
from workers.queues import group_queue

ECHO = """
import sys
from workers.redis_url import RedisAddress
client = RedisAddress.parse(sys.stdin.readline().strip()).client(timeout_s=None)
client.rpush("bench:ready", b"1")
while True:
    _, reply = client.blpop(["bench:ask"])
    if reply == b"stop":
        break
    client.rpush(reply, b"1")
"""


def floor_ms(client: redis.Redis, count: int) -> float:
    """Return milliseconds of `count` echoes and one more after them."""
    reply = f"bench:{uuid.uuid4().hex}"
    started = time.perf_counter()
    for _ in range(count):
        client.rpush("bench:ask", reply)
    for _ in range(count):
        client.blpop([reply], timeout=4)
    client.rpush("bench:ask", reply)
    client.blpop([reply], timeout=4)
    return (time.perf_counter() - started) * 1e3


def chord_ms(app: Celery, client: redis.Redis, count: int) -> float:
    """Return milliseconds of a chord of `count` maps and a reduce."""
    reply = f"bench:{uuid.uuid4().hex}"
    quiet = {"ignore_result": True, "immutable": True}
    header = [
        app.signature("bench.scan", args=(i,), **quiet).set(
            queue=group_queue(i), ignore_result=True
        )
        for i in range(count)
    ]
    body = app.signature("bench.rank", args=(reply,), immutable=True).set(
        queue=group_queue(8), ignore_result=True
    )
    started = time.perf_counter()
    chord(header, body, app=app).apply_async()
    if client.blpop([reply], timeout=4) is None:
        raise TimeoutError("the chord did not answer within 4 s")
    return (time.perf_counter() - started) * 1e3


def main() -> None:
    """Print medians and ratios."""
    options = parser(str(__doc__).splitlines()[0])
    options.add_argument("--rounds", type=int, default=200)
    arguments = options.parse_args()
    # Only the echo worker may take the messages: this home serves no group.
    with running(serve_groups=(15,)) as settings:
        context = Context(settings)
        address = context.redis_address
        queues = ",".join(group_queue(group) for group in range(9))
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "benchmarks.echo", "worker", "-P", "threads",
             "-c", "2", "-Q", queues, "-n", "bench@%h", "-l", "ERROR", "--without-gossip",
             "--without-mingle"],
            env={**environment(settings), "VANTAGE_UP_PID": str(os.getpid())},
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        echo = subprocess.Popen([sys.executable, "-c", ECHO], stdin=subprocess.PIPE, text=True)
        assert echo.stdin is not None
        echo.stdin.write(address.our_url() + "\n")
        echo.stdin.flush()
        client = context.redis
        client.blpop(["bench:ready"], timeout=4)
        try:
            show(
                "chord over bare Redis",
                measure(context.app, client, arguments.rounds),
                arguments.json,
            )
        finally:
            client.rpush("bench:ask", "stop")
            echo.wait(timeout=10)
            worker.terminate()
            worker.wait(timeout=20)
            context.close()


def measure(app: Celery, client: redis.Redis, rounds: int) -> list[dict[str, float]]:
    """Return a row for each number of groups."""
    rows = []
    for count in (1, 4, 8):
        floors, chords = [], []
        chord_ms(app, client, count)
        for _ in range(rounds):
            floors.append(floor_ms(client, count))
            chords.append(chord_ms(app, client, count))
        rows.append(
            {
                "groups": count,
                "floor ms": round(median(floors), 2),
                "chord ms": round(median(chords), 2),
                "ratio": round(median(chords) / median(floors), 2),
            }
        )
    return rows


if __name__ == "__main__":
    main()
