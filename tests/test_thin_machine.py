"""Pure layer: the thin loop's machine, event by event, and as a property over random histories."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lto.thin._machine import WAITING, Machine
from lto.thin._messages import (
    AwaitItem,
    BatchEnded,
    BatchStarted,
    Command,
    Ended,
    ItemReturned,
    LinkEnded,
    StartBatch,
    StartLink,
    StopAwaiting,
    WithdrawBatch,
)
from workers.errors import InternalError
from workers.thin import ThinCompile
from workers.work import Estimate

pytestmark = pytest.mark.pure


def compile_(name: str, seconds: float = 1.0, batch: str | None = None, peak: int = 0) -> ThinCompile:
    return ThinCompile(name, Path(name), Path(name), Estimate(seconds, peak, batch), None)


def linked(*compiles: ThinCompile, limit: int = 2, keep_going: bool = False) -> tuple[Machine, list[Command]]:
    machine = Machine(limit, keep_going)
    assert machine.begin() == [StartLink()]
    return machine, machine.handle(LinkEnded(compiles, ok=True))


def names(commands: list[Command]) -> list[list[str]]:
    return [[item.name for item in command.items] for command in commands if isinstance(command, StartBatch)]


def test_costliest_first_and_by_name_where_that_is_equal() -> None:
    _, commands = linked(compile_("small", 1), compile_("b", 5), compile_("large", 9), compile_("a", 5))
    assert names(commands) == [["large"], ["a"], ["b"], ["small"]]


def test_a_failed_thin_link_ends_everything() -> None:
    machine = Machine(2, keep_going=True)
    machine.begin()
    assert machine.handle(LinkEnded((), ok=False)) == [Ended(())]


def test_nothing_to_compile_ends_at_once() -> None:
    _, commands = linked()
    assert commands == [Ended(())]


def test_only_a_few_batches_wait_for_a_slot() -> None:
    machine, commands = linked(*(compile_(f"{n:02}") for n in range(10)))
    assert names(commands) == [[f"{n:02}"] for n in range(WAITING)]
    assert names(machine.handle(BatchStarted(1))) == [[f"{WAITING:02}"]]


def test_batches_shrink_towards_the_end() -> None:
    machine, commands = linked(*(compile_(f"{n:03}", 0.05, "k") for n in range(100)))
    sizes = [len(batch) for batch in names(commands)]
    number = 0
    while True:
        number += 1
        machine.handle(BatchStarted(number))
        commands = machine.handle(BatchEnded(number))
        if commands == [Ended(())]:
            break
    story = [entry for entry in machine._story if isinstance(entry, StartBatch)]
    sizes = [len(batch.items) for batch in story]
    assert sum(sizes) == 100
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 5 * sizes[-1]


def test_other_keys_and_none_do_not_share_a_batch() -> None:
    _, commands = linked(compile_("a", 0.01, "x"), compile_("b", 0.01, "y"), compile_("c", 0.01), compile_("d", 0.01))
    assert names(commands) == [["a"], ["b"], ["c"], ["d"]]


def test_a_batch_needs_the_time_of_all_and_the_memory_of_the_largest() -> None:
    _, commands = linked(compile_("a", 0.03, "x", 10), compile_("b", 0.02, "x", 30))
    (batch,) = commands
    assert isinstance(batch, StartBatch)
    assert batch.estimate.seconds == pytest.approx(0.05)
    assert batch.estimate.peak_rss_bytes == 30


def test_a_failure_withdraws_what_waits_and_drains_what_runs() -> None:
    machine, _ = linked(*(compile_(f"{n}") for n in range(9)), limit=2)
    machine.handle(BatchStarted(1))
    machine.handle(BatchStarted(2))
    withdrawn = machine.handle(BatchEnded(1, failures=1))
    assert withdrawn == [WithdrawBatch(3), WithdrawBatch(4), WithdrawBatch(5), WithdrawBatch(6)]
    for batch in (3, 4, 5, 6):
        assert machine.handle(BatchEnded(batch)) == []
    assert machine.handle(BatchEnded(2)) == [Ended(("2", "3", "4", "5", "6", "7", "8"))]


def test_a_batch_that_started_before_it_could_be_withdrawn_counts() -> None:
    machine, _ = linked(*(compile_(f"{n}") for n in range(3)))
    machine.handle(BatchStarted(1))
    assert machine.handle(BatchEnded(1, failures=1)) == [WithdrawBatch(2), WithdrawBatch(3)]
    machine.handle(BatchEnded(3))
    machine.handle(BatchStarted(2))
    assert machine.handle(BatchEnded(2)) == [Ended(("2",))]


def test_what_a_failed_batch_did_not_get_to_is_skipped() -> None:
    machine, _ = linked(*(compile_(f"{n}", 0.001, "k") for n in range(5)), limit=1)
    machine.handle(BatchStarted(1))
    commands = machine.handle(BatchEnded(1, failures=1, skipped=("3", "4")))
    waiting = [command.batch for command in commands if isinstance(command, WithdrawBatch)]
    for batch in waiting:
        commands = machine.handle(BatchEnded(batch))
    assert commands[-1] == Ended(("3", "4"))


def test_keep_going_goes_on() -> None:
    machine, _ = linked(*(compile_(f"{n}") for n in range(3)), keep_going=True)
    machine.handle(BatchStarted(1))
    assert machine.handle(BatchEnded(1, failures=1)) == []
    machine.handle(BatchStarted(2))
    machine.handle(BatchStarted(3))
    machine.handle(BatchEnded(2))
    assert machine.handle(BatchEnded(3)) == [Ended(())]


def test_what_somebody_else_is_making_is_awaited_and_comes_first_then() -> None:
    items = [compile_(f"{n:02}") for n in range(WAITING + 3)]
    machine, _ = linked(*items)
    machine.handle(BatchStarted(1))
    # It does not count among what waits for a slot.
    awaited = machine.handle(BatchEnded(1, deferred=(items[0],)))
    assert awaited == [AwaitItem(items[0])]
    assert machine.handle(ItemReturned(items[0])) == []
    assert names(machine.handle(BatchStarted(2))) == [["00"]]


def test_the_loop_does_not_end_while_something_is_awaited() -> None:
    a, b = compile_("a"), compile_("b", 2)
    machine, _ = linked(a, b)
    for batch in (1, 2):
        machine.handle(BatchStarted(batch))
    assert machine.handle(BatchEnded(1, deferred=(b,))) == [AwaitItem(b)]
    assert machine.handle(BatchEnded(2)) == []
    assert names(machine.handle(ItemReturned(b))) == [["b"]]
    machine.handle(BatchStarted(3))
    assert machine.handle(BatchEnded(3, deferred=(b,))) == [AwaitItem(b)]  # by somebody else again
    assert names(machine.handle(ItemReturned(b))) == [["b"]]
    machine.handle(BatchStarted(4))
    assert machine.handle(BatchEnded(4)) == [Ended(())]


def test_a_failure_gives_up_what_is_awaited() -> None:
    a, b, c = compile_("a", 3), compile_("b", 2), compile_("c", 1)
    machine, _ = linked(a, b, c, limit=3)
    for batch in (1, 2, 3):
        machine.handle(BatchStarted(batch))
    machine.handle(BatchEnded(1, deferred=(a,)))
    assert machine.handle(BatchEnded(2, failures=1)) == [StopAwaiting()]
    assert machine.handle(ItemReturned(a)) == []  # it was on its way
    # What is deferred now is not even awaited.
    assert machine.handle(BatchEnded(3, deferred=(c,))) == [Ended(("a", "c"))]


def test_a_failure_ends_a_loop_that_only_waits_for_others() -> None:
    a, b = compile_("a", 0.01, "k"), compile_("b", 0.01, "k")
    machine, _ = linked(a, b, limit=1)
    machine.handle(BatchStarted(1))
    assert machine.handle(BatchEnded(1, failures=1, deferred=(b,))) == [Ended(("b",))]
    machine, _ = linked(compile_("c", 2), a)
    machine.handle(BatchStarted(1))
    machine.handle(BatchStarted(2))
    machine.handle(BatchEnded(2, deferred=(a,)))
    assert machine.handle(BatchEnded(1, failures=1)) == [StopAwaiting(), Ended(("a",))]


def test_keep_going_keeps_waiting() -> None:
    a, b = compile_("a", 2), compile_("b", 1)
    machine, _ = linked(a, b, keep_going=True)
    machine.handle(BatchStarted(1))
    machine.handle(BatchStarted(2))
    machine.handle(BatchEnded(1, deferred=(a,)))
    assert machine.handle(BatchEnded(2, failures=1)) == []
    assert names(machine.handle(ItemReturned(a))) == [["a"]]


@pytest.mark.parametrize("event", [BatchStarted(7), BatchEnded(7), BatchEnded(1), LinkEnded((), ok=True)])
def test_what_cannot_happen_is_a_bug_and_changes_nothing(event: object) -> None:
    machine, _ = linked(compile_("a"))
    with pytest.raises(InternalError, match="thin loop"):
        machine.handle(event)  # type: ignore[arg-type]
    machine.handle(BatchStarted(1))
    assert machine.handle(BatchEnded(1)) == [Ended(())]


ITEMS = st.lists(
    st.tuples(st.floats(0, 10), st.integers(0, 100), st.sampled_from([None, "a", "b"])), min_size=0, max_size=200
)


@settings(deadline=None)
@given(costs=ITEMS, limit=st.integers(1, 8), keep_going=st.booleans(), data=st.data())
def test_whatever_the_interleaving_everything_is_compiled_once_or_skipped(
    costs: list[tuple[float, int, str | None]], limit: int, keep_going: bool, data: st.DataObject
) -> None:
    machine = Machine(limit, keep_going)
    commands = machine.begin()
    compiles = [compile_(str(n), seconds, batch, peak) for n, (seconds, peak, batch) in enumerate(costs)]
    waiting: dict[int, StartBatch] = {}
    running: dict[int, StartBatch] = {}
    withdrawn: set[int] = set()
    awaited: dict[str, ThinCompile] = {}
    crossing: list[ThinCompile] = []
    done: list[str] = []
    failed = False
    ended: Ended | None = None
    commands = machine.handle(LinkEnded(tuple(compiles), ok=True))
    while True:
        machine.check_invariants()
        for command in commands:
            assert ended is None
            match command:
                case StartBatch(batch):
                    assert not (failed and not keep_going)
                    waiting[batch] = command
                case WithdrawBatch(batch):
                    assert batch in waiting
                    withdrawn.add(batch)
                case AwaitItem(item):
                    assert not (failed and not keep_going)
                    assert item.name not in awaited
                    awaited[item.name] = item
                case StopAwaiting():
                    assert awaited
                    crossing += awaited.values()
                    awaited.clear()
                case Ended():
                    ended = command
                case StartLink():
                    pytest.fail("the thin link starts once")
        if ended is not None:
            break
        assert len(waiting) <= WAITING
        startable = sorted(waiting) if len(running) < limit else sorted(withdrawn & waiting.keys())
        returnable = sorted({*awaited, *(item.name for item in crossing)})
        choices: list[int | str] = [*startable, *sorted(running), *returnable]
        chosen = data.draw(st.sampled_from(choices))
        if isinstance(chosen, str):
            late = [item for item in crossing if item.name == chosen]
            crossing = [item for item in crossing if item.name != chosen]
            commands = machine.handle(ItemReturned(late[0] if late else awaited.pop(chosen)))
        elif chosen in running:
            items = list(running.pop(chosen).items)
            fails = data.draw(st.sampled_from([0, 0, 0, 1]))
            failed |= bool(fails)
            got_to = data.draw(st.integers(1, len(items))) if fails and not keep_going else len(items)
            # The one that failed was not deferred.
            defers = data.draw(st.integers(0, min(3, got_to - fails)))
            done += [item.name for item in items[defers:got_to]]
            skipped = tuple(item.name for item in items[got_to:])
            commands = machine.handle(BatchEnded(chosen, fails, skipped, tuple(items[:defers])))
        elif chosen in withdrawn and data.draw(st.booleans()):
            del waiting[chosen]
            commands = machine.handle(BatchEnded(chosen))
        elif len(running) < limit:
            running[chosen] = waiting.pop(chosen)
            commands = machine.handle(BatchStarted(chosen))
        else:
            commands = []
    assert not waiting
    assert not running
    assert not awaited
    assert sorted([*done, *ended.skipped]) == sorted(item.name for item in compiles)
    if not failed or keep_going:
        assert ended.skipped == ()
