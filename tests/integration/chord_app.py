"""A Celery app with Vantage's settings and three tasks that do nothing but can be blocked.

The tasks have the names of real ones, so that queues and routes are the real ones too.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from workers.app import VantageApp
from workers.celery_settings import settings_of_environment
from workers.redis_url import RedisAddress

app: Celery = VantageApp("chords")
app.config_from_object(settings_of_environment())
RUNS, GO = "runs", "go"


def redis() -> Any:
    return RedisAddress.parse(os.environ["VANTAGE_REDIS_URL"]).client(database=5, timeout_s=None)


@app.task(shared=False, name="extract.batch", ignore_result=True)
def part(number: int, held: bool = False) -> dict[str, int]:
    client = redis()
    client.rpush(RUNS, f"{number} {os.getpid()}")
    if held:
        client.blpop(GO, timeout=600)
    client.close()
    return {"part": number}


@app.task(shared=False, name="group.assign", ignore_result=True, bind=True, max_retries=2)
def lethal(self: Any, number: int) -> dict[str, int]:
    client = redis()
    runs = client.rpush(RUNS, f"{number} {os.getpid()}")
    client.close()
    if runs == 1:
        os.kill(os.getpid(), 9)
    return {"part": number}


@app.task(shared=False, name="extract.collect", ignore_result=False)
def collect(parts: list[dict[str, int]]) -> list[int]:
    client = redis()
    client.rpush("collected", 1)
    client.close()
    return [item["part"] for item in parts]
