from __future__ import annotations

import dataclasses
import socket
import subprocess
import sys
from pathlib import Path

from sqlalchemy import text

from pipeline.config import Settings
from pipeline.metadata.engine import create_metadata_engine, session_scope, upgrade
from workers.doctor import Check, checks


def _by_name(settings: Settings) -> dict[str, Check]:
    return {check.name: check for check in checks(settings)}


def test_a_fresh_machine_is_fine_and_nothing_is_created_by_looking(settings: Settings) -> None:
    found = _by_name(settings)
    assert [check for check in found.values() if not check.ok] == []
    assert {"python", "cpu", "opencv", "redis", "database", "store", "extractor", "workers"} <= set(
        found
    )
    assert list(settings.home.iterdir()) == []


def test_the_schema_of_the_database_is_reported(settings: Settings) -> None:
    engine = create_metadata_engine(settings.database_url)
    upgrade(engine)
    engine.dispose()
    check = _by_name(settings)["database"]
    assert check.ok
    assert "schema 0" in check.detail


def test_a_database_without_our_tables_names_the_command(settings: Settings) -> None:
    (settings.home / "vantage.sqlite").touch()
    check = _by_name(settings)["database"]
    assert not check.ok
    assert "vantage migrate" in check.remedy


def test_a_database_of_a_newer_release_asks_for_that_release(settings: Settings) -> None:
    engine = create_metadata_engine(settings.database_url)
    upgrade(engine)
    with session_scope(engine) as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    check = _by_name(settings)["database"]
    assert not check.ok
    assert "install a newer Vantage" in check.remedy
    assert "vantage migrate" not in check.remedy


def test_a_database_that_does_not_answer_is_tried_once(settings: Settings) -> None:
    (settings.home / "vantage.sqlite").mkdir()
    found = checks(settings)
    (told,) = [check for check in found if "did not answer" in check.detail]
    assert (told.name, told.ok) == ("database", False)
    assert "VANTAGE_DATABASE_URL" in told.remedy
    skipped = {check.name for check in found if check.detail.startswith("not tried")}
    assert skipped == {"identity", "sharing", "store files", "cache", "workers"}
    assert not any(check.ok for check in found if check.name in skipped)


def test_a_missing_image_root_is_found(settings: Settings, tmp_path: Path) -> None:
    roots = (str(tmp_path), str(tmp_path / "not mounted"))
    found = [
        check
        for check in checks(dataclasses.replace(settings, image_roots=roots))
        if check.name == "image root"
    ]
    assert [check.ok for check in found] == [True, False]
    assert "VANTAGE_IMAGE_ROOTS" in found[1].remedy


def test_a_redis_that_does_not_answer_is_found_and_its_password_not_shown(
    settings: Settings,
) -> None:
    check = _by_name(dataclasses.replace(settings, redis_url="redis://:secret@127.0.0.1:1/0"))[
        "redis"
    ]
    assert not check.ok
    assert "secret" not in check.detail + check.remedy


def test_a_running_redis_is_described(settings: Settings, redis_url: str) -> None:
    check = _by_name(dataclasses.replace(settings, redis_url=redis_url))["redis"]
    assert check.ok
    assert "master" in check.detail


def test_a_taken_port_of_flower_is_told_and_no_failure(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        check = _by_name(dataclasses.replace(settings, flower_port=port))["flower"]
    assert check.ok
    assert check.detail.endswith("Address already in use; Flower takes a free port")


def test_an_address_of_another_host_is_found(settings: Settings) -> None:
    changed = dataclasses.replace(settings, flower_address="192.0.2.9", flower_password="word")
    check = _by_name(changed)["flower"]
    assert not check.ok
    assert "VANTAGE_FLOWER_ADDRESS" in check.remedy


def test_a_dashboard_open_to_the_network_without_a_password_is_a_failed_check(
    settings: Settings,
) -> None:
    check = _by_name(dataclasses.replace(settings, flower_address="0.0.0.0"))["flower"]
    assert not check.ok
    assert "VANTAGE_FLOWER_PASSWORD" in check.detail


def test_the_extractor_of_new_collections_is_looked_at(settings: Settings, tmp_path: Path) -> None:
    check = _by_name(settings)["extractor"]
    assert (check.ok, check.detail) == (True, "sift, 128 numbers a descriptor")
    lacking = dataclasses.replace(
        settings,
        extractor=dataclasses.replace(settings.extractor, name="cnn"),
        extractor_text=f"cnn:{tmp_path / 'net.onnx'}",
    )
    check = _by_name(lacking)["extractor"]
    assert not check.ok
    assert "there is no such file" in check.detail


def test_warming_leaves_nothing_to_compile_for_the_first_picture() -> None:
    """Every compiled function has all its versions, loaded or made, before a picture comes."""
    code = (
        "import sys\n"
        "import numpy as np\n"
        "from pipeline.config import ExtractorConfig\n"
        "from pipeline.extraction.registry import extractor_names, get_extractor, registration\n"
        "from pipeline.images import from_array\n"
        "from pipeline.machine_code import CompiledLoop\n"
        "from workers.doctor import warm\n"
        "def compiled():\n"
        "    modules = [m for n, m in sys.modules.items() if n.startswith('pipeline.')]\n"
        "    functions = [f for m in modules for f in vars(m).values()]\n"
        "    found = [f for f in functions if isinstance(f, CompiledLoop)]\n"
        "    return {f'{f.module}.{f.name}': f.versions for f in found}\n"
        "warm()\n"
        "before = compiled()\n"
        "picture = np.random.default_rng(1).integers(0, 256, (300, 400), np.uint8)\n"
        "for name in extractor_names():\n"
        "    if not registration(name).needs_model:\n"
        "        extractor = get_extractor(ExtractorConfig(name=name))\n"
        "        image = from_array(picture, max_side=1024, color=extractor.color)\n"
        "        extractor.normalize(extractor.extract(image, 50).descriptors)\n"
        "after = compiled()\n"
        "print(any('.surf.' in name for name in after))\n"
        "print([name for name in after if after[name] != before.get(name, 0)])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True\n[]\n", "")
