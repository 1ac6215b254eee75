"""Layer: pure. Something that is done beside other things, and where there are no threads."""

from __future__ import annotations

import threading

import pytest

from workers.meanwhile import Meanwhile

pytestmark = pytest.mark.pure


def fails() -> int:
    raise ValueError("what went wrong")


@pytest.fixture(params=["thread", "no thread"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "no thread":

        def start(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", start)


@pytest.mark.usefixtures("way")
def test_what_it_gives_and_raises_is_there_as_often_as_it_is_asked_for() -> None:
    seven = Meanwhile(lambda: 7)
    assert (seven.result(), seven.result(), seven.ends_within(0)) == (7, 7, True)
    failing = Meanwhile(fails)
    for _ in range(2):
        with pytest.raises(ValueError, match="went wrong"):
            failing.result()
    assert failing.ends_within(None)


def test_it_goes_on_while_somebody_looks() -> None:
    go = threading.Event()
    waiting = Meanwhile(go.wait)
    assert not waiting.ends_within(0)
    go.set()
    assert waiting.result()
    assert waiting.ends_within(0)
