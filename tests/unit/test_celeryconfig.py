from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pipeline.config import Settings
from workers.app import app
from workers.environment import environment
from workers.redis_url import NO_BROKER_URL


def test_a_killed_worker_cannot_lose_a_message() -> None:
    assert app.conf.task_acks_late
    assert app.conf.task_reject_on_worker_lost
    assert app.conf.task_retry_on_worker_lost
    assert app.conf.worker_prefetch_multiplier == 1


def test_every_task_is_retried_after_a_second_not_after_three_minutes() -> None:
    app.loader.import_default_modules()
    delays = {n: t.default_retry_delay for n, t in app.tasks.items() if not n.startswith("celery.")}
    assert delays
    assert all(delay <= 10 for delay in delays.values()), delays


def test_the_state_of_a_chord_outlives_every_gap_between_its_tasks() -> None:
    assert app.conf.result_chord_expires >= 86_400
    assert app.conf.result_chord_expires > app.conf.result_expires
    assert app.conf.result_chord_expires > 10 * app.conf.visibility_timeout


def test_time_limits_lie_below_the_visibility_timeout() -> None:
    conf = app.conf
    assert conf.task_soft_time_limit < conf.task_time_limit < conf.visibility_timeout


def test_every_reader_of_the_visibility_timeout_gets_the_same() -> None:
    conf, expected = app.conf, Settings.from_env().visibility_timeout_s
    assert conf.visibility_timeout == expected
    assert conf.broker_transport_options["visibility_timeout"] == expected
    assert conf.result_backend_transport_options["visibility_timeout"] == expected


def test_only_json_is_accepted() -> None:
    assert list(app.conf.accept_content) == ["json"]
    assert list(app.conf.result_accept_content) == ["json"]
    assert app.conf.task_serializer == app.conf.result_serializer == "json"


def test_a_queue_is_one_redis_list() -> None:
    assert app.conf.broker_transport_options["priority_steps"] == [0]


def _python(code: str, settings: Settings, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(settings),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_app_can_be_imported_where_no_redis_is(settings: Settings, tmp_path: Path) -> None:
    code = "from workers.app import app; print(app.conf.broker_url)"
    assert _python(code, settings, tmp_path) == NO_BROKER_URL


def test_another_projects_celeryconfig_in_the_working_directory_is_not_read(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "celeryconfig.py").write_text("task_default_queue = 'theirs'\n")
    code = "from workers.app import app; print(app.conf.task_default_queue)"
    assert _python(code, settings, tmp_path) == "no-queue-was-given"
