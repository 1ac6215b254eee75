"""Pure layer: what the history remembers and how it blends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator._history import History

pytestmark = pytest.mark.pure

measurements = st.lists(
    st.tuples(st.floats(0, 1e6, allow_subnormal=False), st.integers(0, 2**50)), min_size=1, max_size=30
)


def test_an_unknown_key_has_no_estimate() -> None:
    assert History().estimate("key") is None


def test_one_measurement_is_the_estimate() -> None:
    history = History()
    history.record("key", 2.0, 100)
    assert history.estimate("key") == (2.0, 100)
    assert history.estimate("other") is None


def test_time_follows_within_a_few_runs_and_a_higher_peak_at_once() -> None:
    history = History()
    history.record("key", 2.0, 100)
    history.record("key", 4.0, 1000)
    assert history.estimate("key") == (3.0, 1000)
    history.record("key", 4.0, 100)
    assert history.estimate("key") == (3.5, 910)


@given(measurements)
def test_estimates_stay_among_the_measurements(runs: list[tuple[float, int]]) -> None:
    history = History()
    for seconds, peak in runs:
        history.record("key", seconds, peak)
    estimate = history.estimate("key")
    assert estimate is not None
    times, peaks = zip(*runs, strict=True)
    assert min(times) - 1e-6 <= estimate[0] <= max(times) + 1e-6
    # Never below what the last run needed.
    assert peaks[-1] <= estimate[1] <= max(peaks)


@given(measurements, st.tuples(st.just(1.0), st.integers(0, 2**50)))
def test_an_old_peak_is_forgotten(runs: list[tuple[float, int]], steady: tuple[float, int]) -> None:
    history = History()
    for seconds, peak in runs:
        history.record("key", seconds, peak)
    for _ in range(400):
        history.record("key", *steady)
    estimate = history.estimate("key")
    assert estimate is not None
    assert estimate[1] - steady[1] <= 10


def test_the_keys_used_last_stay() -> None:
    history = History(capacity=2)
    history.record("a", 1.0, 1)
    history.record("b", 2.0, 2)
    assert history.estimate("a") == (1.0, 1)  # now "b" is the oldest
    history.record("c", 3.0, 3)
    assert history.estimate("b") is None
    history.record("a", 1.0, 1)  # now "c" is the oldest
    history.record("d", 4.0, 4)
    assert [key for key in "abcd" if history.estimate(key)] == ["a", "d"]
