"""Names in Redis: each says which search or job it belongs to, all are below one prefix."""

from __future__ import annotations

import time

from workers.keys import KEEP_S, Keys, keep_s


def _all(keys: Keys) -> list[str]:
    own = [keys.request, keys.image, keys.batch, keys.ticket, keys.result, keys.reply, keys.put_off]
    some = [key(name) for key in own for name in ("a", "b")]
    scans = [keys.scan(name, group) for name in ("a", "b") for group in (0, 1)]
    return [keys.epoch, keys.in_flight, *some, *scans]


def test_no_two_keys_are_the_same_and_all_begin_with_the_prefix() -> None:
    names = _all(Keys("here"))
    assert len(set(names)) == len(names) == 20
    assert all(name.startswith("vantage:here:") for name in names)
    assert not set(names) & set(_all(Keys("there")))


def test_what_belongs_to_a_search_outlives_its_deadline() -> None:
    assert KEEP_S + 98 <= keep_s(time.time() + 100) <= KEEP_S + 100
    assert keep_s(time.time() - 100) == KEEP_S
