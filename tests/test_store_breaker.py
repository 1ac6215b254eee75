"""Pure layer: when a server is left alone, and when it is asked again."""

from __future__ import annotations

import pytest

from workers.store.breaker import Breaker

pytestmark = pytest.mark.pure


def breaker() -> Breaker:
    return Breaker(enough=3, enough_seconds=5.0, pause_seconds=10.0, most_seconds=25.0)


def test_failures_in_a_row_switch_off_and_a_success_between_them_does_not() -> None:
    one = breaker()
    for now in range(6):
        assert one.admit(now)
        one.failed(now, 0.1) if now % 3 else one.succeeded()
    for _ in range(2):
        assert one.admit(6)
        one.succeeded()
    for now in (7, 8, 9):
        assert one.admit(now)
        one.failed(now, 0.1)
    assert not one.admit(18.9)
    assert one.admit(19)


def test_one_failure_is_enough_if_it_took_long() -> None:
    one = breaker()
    one.failed(0, 5.0)
    assert not one.admit(1)


def test_one_probe_at_a_time_and_longer_pauses_after_each() -> None:
    one = breaker()
    one.failed(0, 5.0)
    now = 10.0
    for pause in (20.0, 25.0, 25.0):
        assert one.admit(now)
        assert not one.admit(now)
        one.failed(now, 0.1)
        assert not one.admit(now + pause - 1)
        now += pause
    assert one.admit(now)
    one.abandoned()
    assert one.admit(now)
    one.succeeded()
    assert one.admit(now)
    one.failed(now, 5.0)
    assert one.admit(now + 10)


def test_those_still_under_way_do_not_prolong_the_pause() -> None:
    one = breaker()
    for _ in range(50):
        one.failed(0, 1.0)
    assert one.admit(10)


@pytest.mark.parametrize(("asked", "until"), [(1.0, 10.0), (15.0, 15.0), (1e9, 25.0)])
def test_a_server_that_asks_for_a_pause_gets_it(asked: float, until: float) -> None:
    one = breaker()
    one.failed(0, 0.1, asked)
    assert not one.admit(until - 0.1)
    assert one.admit(until)
