"""Pure layer: the main loop's machine, event by event, and as a property over random histories."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator._machine import OVERTAKE_LIMIT, Machine, queue_full_enough
from coordinator._messages import (
    AwaitItem,
    BatchEnded,
    CancelBatch,
    Command,
    EndStage,
    ItemQueued,
    ItemReturned,
    PauseProducer,
    QueuedItem,
    ReleaseToken,
    RequestToken,
    ResumeProducer,
    StageCancelled,
    StageClosed,
    StageFailed,
    StageOpened,
    StartBatch,
    StopAwaiting,
    TokenGranted,
    WithdrawRequest,
)
from coordinator._tokens import IMPLICIT, Token
from workers.errors import InternalError
from workers.work import Estimate

pytestmark = pytest.mark.pure

BUDGET = 1000


def item(name: str, seconds: float = 1.0, peak: int = 0, batch: str | None = None, held: int = 0) -> QueuedItem:
    return QueuedItem(name, name, Estimate(seconds, peak, batch), held)


def machine(limit: int = 1, budget: int = BUDGET, stages: int = 1, keep_going: bool = False) -> Machine:
    made = Machine(limit, budget)
    for stage in range(stages):
        assert made.handle(StageOpened(stage, keep_going)) == []
    return made


def names(commands: list[Command]) -> list[list[str]]:
    return [[i.name for i in command.items] for command in commands if isinstance(command, StartBatch)]


def test_the_first_item_starts_on_the_implicit_token() -> None:
    m = machine()
    only = item("a")
    assert m.handle(ItemQueued(0, only)) == [StartBatch(1, 0, (only,), IMPLICIT)]


def test_costliest_first() -> None:
    m = machine()
    m.handle(ItemQueued(0, item("running")))
    for name, seconds in (("small", 1), ("large", 9), ("middle", 5)):
        assert m.handle(ItemQueued(0, item(name, seconds))) == []
    assert names(m.handle(BatchEnded(1))) == [["large"]]
    assert names(m.handle(BatchEnded(2))) == [["middle"]]
    assert names(m.handle(BatchEnded(3))) == [["small"]]


def test_a_second_token_is_asked_for_only_while_something_could_start_on_it() -> None:
    m = machine(limit=2)
    token = Token()
    m.handle(ItemQueued(0, item("a")))
    assert m.handle(ItemQueued(0, item("b"))) == [RequestToken()]
    assert m.handle(ItemQueued(0, item("c"))) == []  # one request at a time
    granted = m.handle(TokenGranted(token))
    assert names(granted) == [["b"]]
    assert m.handle(BatchEnded(1)) == [StartBatch(3, 0, (item("c"),), IMPLICIT)]
    assert m.handle(BatchEnded(2)) == [ReleaseToken(token)]


def test_a_request_is_withdrawn_when_the_queue_runs_dry_and_a_late_grant_goes_back() -> None:
    m = machine(limit=2)
    token = Token()
    m.handle(ItemQueued(0, item("a")))
    m.handle(ItemQueued(0, item("b")))
    assert m.handle(BatchEnded(1)) == [StartBatch(2, 0, (item("b"),), IMPLICIT), WithdrawRequest()]
    assert m.handle(TokenGranted(token)) == [ReleaseToken(token)]


def test_never_more_tokens_asked_for_than_the_limit() -> None:
    m = machine(limit=2)
    m.handle(ItemQueued(0, item("a")))
    m.handle(ItemQueued(0, item("b")))
    m.handle(TokenGranted(Token()))
    assert m.handle(ItemQueued(0, item("c"))) == []


def test_an_item_that_does_not_fit_waits_and_smaller_ones_overtake_it() -> None:
    m = machine(limit=3)
    m.handle(ItemQueued(0, item("first", 9, peak=600)))
    m.handle(ItemQueued(0, item("big", 8, peak=600)))
    assert m.handle(ItemQueued(0, item("small", 1, peak=300))) == [RequestToken()]
    assert names(m.handle(TokenGranted(Token()))) == [["small"]]
    assert names(m.handle(BatchEnded(1))) == [["big"]]


def test_one_item_always_runs_even_above_the_budget() -> None:
    m = machine(limit=2)
    assert names(m.handle(ItemQueued(0, item("huge", peak=10 * BUDGET)))) == [["huge"]]
    assert names(m.handle(ItemQueued(0, item("tiny", peak=1)))) == []
    assert names(m.handle(BatchEnded(1))) == [["tiny"]]


def test_overtaking_is_bounded() -> None:
    m = machine(limit=2)
    m.handle(ItemQueued(0, item("long", 100, peak=600)))
    m.handle(ItemQueued(0, item("big", 50, peak=600)))
    m.handle(ItemQueued(0, item("s", 1, peak=1)))
    started = names(m.handle(TokenGranted(Token())))
    batch = 2
    for _ in range(OVERTAKE_LIMIT - 1):
        assert started == [["s"]]
        m.handle(BatchEnded(batch))
        # The explicit token went back when nothing could start; it is asked for again.
        assert m.handle(ItemQueued(0, item("s", 1, peak=1))) == [RequestToken()]
        started = names(m.handle(TokenGranted(Token())))
        batch += 1
    m.handle(BatchEnded(batch))
    assert m.handle(ItemQueued(0, item("s", 1, peak=1))) == []  # big has waited long enough
    assert names(m.handle(BatchEnded(1))) == [["big"]]


def test_builds_share_by_running_batches_then_by_service() -> None:
    m = machine(limit=1, stages=2)
    m.handle(ItemQueued(0, item("a1", 10)))
    for name in ("a2", "a3"):
        m.handle(ItemQueued(0, item(name, 10)))
    for name in ("b1", "b2", "b3"):
        m.handle(ItemQueued(1, item(name, 4)))
    order = []
    for batch in range(1, 6):
        order += names(m.handle(BatchEnded(batch)))
    # 10 s of a against 4 s of b each: b goes until it has had as much.
    assert order == [["b1"], ["b2"], ["b3"], ["a2"], ["a3"]]


def test_a_late_build_is_not_starved_and_does_not_starve() -> None:
    m = machine(limit=1)
    m.handle(ItemQueued(0, item("a1", 100)))
    m.handle(ItemQueued(0, item("a2", 100)))
    m.handle(StageOpened(1))
    m.handle(ItemQueued(1, item("b1", 60)))
    m.handle(ItemQueued(1, item("b2", 60)))
    order = []
    for batch in range(1, 4):
        order += names(m.handle(BatchEnded(batch)))
    assert order == [["a2"], ["b1"], ["b2"]] or order == [["b1"], ["a2"], ["b2"]]


def test_small_items_of_one_key_share_a_batch_and_batches_shrink() -> None:
    m = machine(limit=1)
    m.handle(ItemQueued(0, item("first", 1)))
    for number in range(60):
        m.handle(ItemQueued(0, item(f"s{number:02}", 0.0078125, batch="k")))
    sizes = []
    batch = 1
    while started := names(m.handle(BatchEnded(batch))):
        sizes.append(len(started[0]))
        batch += 1
    assert sizes == [30, 15, 12, 3]  # half of what is left, and never less than 0.1 s if there is so much


def test_items_of_other_keys_and_costly_items_are_not_batched() -> None:
    m = machine(limit=1)
    m.handle(ItemQueued(0, item("first", 99)))
    for number in range(8):
        m.handle(ItemQueued(0, item(f"x{number}", 1.0, batch="k")))
    for number in range(8):
        m.handle(ItemQueued(0, item(f"y{number}", 0.001, batch=str(number))))
    sizes = [len(started) for batch in range(1, 17) for started in names(m.handle(BatchEnded(batch)))]
    assert sizes == [1] * 16


def test_a_failure_aborts_and_drains() -> None:
    m = machine(limit=2)
    token = Token()
    m.handle(ItemQueued(0, item("a", 3)))
    m.handle(ItemQueued(0, item("b", 2)))
    m.handle(TokenGranted(token))
    m.handle(ItemQueued(0, item("c", 1)))
    assert m.handle(BatchEnded(1, failures=1)) == []  # c does not start; b goes on
    assert m.handle(ItemQueued(0, item("d"))) == []
    assert m.handle(StageClosed(0)) == []
    assert m.handle(BatchEnded(2)) == [ReleaseToken(token), EndStage(0, ("c", "d"))]


def test_keep_going_goes_on_after_a_failure() -> None:
    m = machine(keep_going=True)
    m.handle(ItemQueued(0, item("a")))
    m.handle(ItemQueued(0, item("b")))
    assert names(m.handle(BatchEnded(1, failures=1))) == [["b"]]
    assert m.handle(StageFailed(0)) == []
    m.handle(StageClosed(0))
    assert m.handle(BatchEnded(2)) == [EndStage(0, ())]


def test_a_module_refused_outside_the_queue_aborts() -> None:
    m = machine()
    m.handle(ItemQueued(0, item("a")))
    m.handle(ItemQueued(0, item("b")))
    m.handle(StageFailed(0))
    m.handle(StageClosed(0))
    assert m.handle(BatchEnded(1)) == [EndStage(0, ("b",))]


def test_cancelling_stops_what_runs_and_other_builds_do_not_notice() -> None:
    m = machine(limit=2, stages=2)
    m.handle(ItemQueued(0, item("a")))
    m.handle(ItemQueued(0, item("b")))
    m.handle(TokenGranted(Token()))
    m.handle(ItemQueued(1, item("other")))
    assert m.handle(StageCancelled(0)) == [CancelBatch(1), CancelBatch(2)]
    assert names(m.handle(BatchEnded(1))) == [["other"]]
    ended = m.handle(BatchEnded(2))
    assert EndStage(0, ()) in ended
    assert not any(isinstance(command, StartBatch | CancelBatch) for command in ended)


def test_cancelling_an_idle_build_ends_it_at_once() -> None:
    assert machine().handle(StageCancelled(0)) == [EndStage(0, ())]


def test_the_producer_is_paused_and_resumed() -> None:
    m = machine(limit=1)
    megabyte = 2**20
    m.handle(ItemQueued(0, item("a")))
    commands = [command for n in range(3) for command in m.handle(ItemQueued(0, item(f"q{n}", held=200 * megabyte)))]
    assert commands == [PauseProducer(0)]
    assert ResumeProducer(0) not in m.handle(BatchEnded(1))
    assert ResumeProducer(0) not in m.handle(BatchEnded(2))
    assert ResumeProducer(0) in m.handle(BatchEnded(3))


def deferred(m: Machine, *items: QueuedItem) -> list[Command]:
    """What comes of starting all items in a batch, and finding that somebody else is making them."""
    for one in items:
        m.handle(ItemQueued(0, one))
    return m.handle(BatchEnded(1, deferred=items))


def test_what_somebody_else_is_making_is_awaited_without_a_token_and_then_tried_again() -> None:
    m = machine(limit=1)
    a, b = item("a", 2), item("b", 1)
    m.handle(ItemQueued(0, a))
    m.handle(ItemQueued(0, b))
    assert m.handle(BatchEnded(1, deferred=(a,))) == [AwaitItem(0, a), StartBatch(2, 0, (b,), IMPLICIT)]
    assert m.handle(StageClosed(0)) == []
    assert m.handle(BatchEnded(2)) == []  # a is still to come
    assert m.handle(ItemReturned(0, a)) == [StartBatch(3, 0, (a,), IMPLICIT)]
    assert m.handle(BatchEnded(3)) == [EndStage(0, ())]


def test_an_explicit_token_goes_back_when_all_that_is_left_is_awaited() -> None:
    m = machine(limit=2)
    token = Token()
    a, b = item("a"), item("b")
    m.handle(ItemQueued(0, a))
    m.handle(ItemQueued(0, b))
    m.handle(TokenGranted(token))
    assert m.handle(BatchEnded(2, deferred=(b,))) == [AwaitItem(0, b), ReleaseToken(token)]
    assert m.handle(BatchEnded(1, deferred=(a,))) == [AwaitItem(0, a)]
    assert names(m.handle(ItemReturned(0, b))) == [["b"]]
    assert m.handle(ItemReturned(0, a)) == [RequestToken()]


def test_an_item_may_be_deferred_again_and_again() -> None:
    m = machine()
    a = item("a")
    m.handle(ItemQueued(0, a))
    m.handle(StageClosed(0))
    for batch in range(1, 5):
        assert m.handle(BatchEnded(batch, deferred=(a,))) == [AwaitItem(0, a)]
        assert m.handle(ItemReturned(0, a)) == [StartBatch(batch + 1, 0, (a,), IMPLICIT)]
    assert m.handle(BatchEnded(5)) == [EndStage(0, ())]


def test_only_the_deferred_ones_of_a_batch_are_tried_again() -> None:
    m = machine()
    m.handle(ItemQueued(0, item("first", 9)))
    a, b, c = (item(name, 0.01, batch="k") for name in "abc")
    for one in (a, b, c):
        m.handle(ItemQueued(0, one))
    assert names(m.handle(BatchEnded(1))) == [["a", "b", "c"]]
    assert m.handle(BatchEnded(2, deferred=(a, c))) == [AwaitItem(0, a), AwaitItem(0, c)]
    assert names(m.handle(ItemReturned(0, c))) == [["c"]]
    assert names(m.handle(ItemReturned(0, a))) == []
    assert names(m.handle(BatchEnded(3))) == [["a"]]


@pytest.mark.parametrize("event", [StageFailed(0), StageCancelled(0)])
def test_what_is_awaited_is_given_up_and_may_still_come_back(event: StageFailed | StageCancelled) -> None:
    m = machine(stages=2)
    a = item("a")
    deferred(m, a)
    assert StopAwaiting(0) in m.handle(event)
    assert m.handle(ItemReturned(0, a)) == []
    if isinstance(event, StageFailed):
        assert m.handle(StageClosed(0)) == [EndStage(0, ("a",))]
    assert m.handle(ItemReturned(0, a)) == []  # the stage is gone
    assert names(m.handle(ItemQueued(1, item("other")))) == [["other"]]


def test_cancelling_ends_a_build_that_only_waits_for_others() -> None:
    m = machine()
    deferred(m, item("a"))
    assert m.handle(StageCancelled(0)) == [StopAwaiting(0), EndStage(0, ("a",))]


def test_what_a_failed_batch_deferred_is_not_awaited() -> None:
    m = machine()
    a = item("a")
    m.handle(ItemQueued(0, a))
    m.handle(StageClosed(0))
    assert m.handle(BatchEnded(1, failures=1, deferred=(a,))) == [EndStage(0, ("a",))]


def test_a_failure_gives_up_what_other_batches_deferred() -> None:
    m = machine(limit=2)
    a, b = item("a", 2), item("b", 1)
    m.handle(ItemQueued(0, a))
    m.handle(ItemQueued(0, b))
    m.handle(TokenGranted(Token()))
    m.handle(StageClosed(0))
    m.handle(BatchEnded(1, deferred=(a,)))
    commands = m.handle(BatchEnded(2, failures=1))
    assert StopAwaiting(0) in commands
    assert commands[-1] == EndStage(0, ("a",))


def test_keep_going_keeps_waiting() -> None:
    m = machine(limit=2, keep_going=True)
    a, b = item("a", 2), item("b", 1)
    m.handle(ItemQueued(0, a))
    m.handle(ItemQueued(0, b))
    m.handle(TokenGranted(Token()))
    m.handle(StageClosed(0))
    m.handle(BatchEnded(1, deferred=(a,)))
    assert not any(isinstance(command, StopAwaiting | EndStage) for command in m.handle(BatchEnded(2, failures=1)))
    assert names(m.handle(ItemReturned(0, a))) == [["a"]]
    assert m.handle(BatchEnded(3)) == [EndStage(0, ())]


def test_what_waits_for_others_holds_its_memory_still() -> None:
    m = machine()
    waiting = tuple(item(str(n), 1, held=100 * 2**20) for n in range(2))
    m.handle(ItemQueued(0, waiting[0]))
    m.handle(BatchEnded(1, deferred=waiting[:1]))
    m.handle(ItemQueued(0, waiting[1]))
    m.handle(BatchEnded(2, deferred=waiting[1:]))
    m.handle(ItemQueued(0, item("runs", 9)))
    assert m.handle(ItemQueued(0, item("x", held=100 * 2**20))) == [PauseProducer(0)]
    for one in waiting:
        assert m.handle(ItemReturned(0, one)) == []
    resumed = [batch for batch in (3, 4, 5, 6) if ResumeProducer(0) in m.handle(BatchEnded(batch))]
    assert resumed == [4]
    assert m._stages[0].held_bytes == 0


def test_a_build_is_not_taken_for_served_where_it_only_had_to_wait() -> None:
    m = machine(stages=2)
    a = item("a", 100)
    deferred(m, a)
    m.handle(ItemQueued(1, item("running", 1)))
    m.handle(ItemQueued(1, item("other", 1)))
    m.handle(ItemReturned(0, a))
    assert names(m.handle(BatchEnded(2))) == [["a"]]


@pytest.mark.parametrize(
    ("items", "held", "limit", "full"),
    [(0, 0, 1, False), (511, 0, 1, False), (512, 0, 1, True), (1, 2**40, 1, False), (4, 2**28, 2, True)],
)
def test_queue_full_enough(items: int, held: int, limit: int, full: bool) -> None:
    assert queue_full_enough(items, held, limit) is full


@pytest.mark.parametrize(
    "event",
    [
        ItemQueued(7, item("a")),
        BatchEnded(7),
        StageClosed(7),
        StageOpened(0),
    ],
)
def test_an_impossible_event_is_a_bug_and_changes_nothing(event: ItemQueued | BatchEnded | StageClosed) -> None:
    m = machine()
    m.handle(ItemQueued(0, item("a")))
    before = repr(m)
    with pytest.raises(InternalError, match="What led there"):
        m.handle(event)
    assert repr(m) == before


ESTIMATES = st.builds(
    Estimate,
    st.sampled_from([0.0, 0.001, 0.01, 0.3, 5.0]),
    st.sampled_from([0, 10, 300, 900, 5000]),
    st.sampled_from([None, "k", "l"]),
)


class RandomHistories(RuleBasedStateMachine):
    """Drive the machine as an arbitrary shell would; whatever the interleaving, nothing is lost or run twice."""

    @initialize(limit=st.integers(1, 4))
    def begin(self, limit: int) -> None:
        self.limit = limit
        self.machine = Machine(limit, BUDGET)
        self.open: set[int] = set()
        self.keep_going: dict[int, bool] = {}
        self.aborted: set[int] = set()
        self.queued: dict[int, list[str]] = {}
        self.started: dict[int, list[str]] = {}
        self.running: dict[int, StartBatch] = {}
        self.tokens: set[Token] = set()
        self.requested = 0
        self.ended: dict[int, tuple[str, ...]] = {}
        self.number = 0
        self.paused: set[int] = set()
        self.awaited: dict[int, dict[str, QueuedItem]] = {}
        self.crossing: list[tuple[int, QueuedItem]] = []

    def handle(self, event: object) -> None:
        for command in self.machine.handle(event):  # type: ignore[arg-type]
            match command:
                case StartBatch(batch, stage, items, token):
                    assert token is IMPLICIT or token in self.tokens
                    assert all(token is not other.token for other in self.running.values())
                    assert stage not in self.aborted
                    self.running[batch] = command
                    self.started[stage] += [i.name for i in items]
                case RequestToken():
                    assert self.requested == 0
                    self.requested = 1
                case WithdrawRequest():
                    assert self.requested == 1
                    self.requested = 0
                case ReleaseToken(token):
                    self.tokens.remove(token)
                case EndStage(stage, skipped):
                    assert stage not in self.ended
                    assert stage not in self.open
                    assert not self.awaited[stage]
                    self.ended[stage] = skipped
                case AwaitItem(stage, awaited):
                    assert stage not in self.aborted
                    assert awaited.name not in self.awaited[stage]
                    self.awaited[stage][awaited.name] = awaited
                case StopAwaiting(stage):
                    assert self.awaited[stage]
                    # The answer of each may be on its way already.
                    self.crossing += [(stage, one) for one in self.awaited[stage].values()]
                    self.awaited[stage].clear()
                case PauseProducer(stage):
                    self.paused.add(stage)
                case ResumeProducer(stage):
                    self.paused.remove(stage)
                case CancelBatch(batch):
                    assert batch in self.running

    @rule(keep_going=st.booleans())
    def open_stage(self, keep_going: bool) -> None:
        stage = len(self.queued)
        self.queued[stage], self.started[stage], self.awaited[stage] = [], [], {}
        self.keep_going[stage] = keep_going
        self.open.add(stage)
        self.handle(StageOpened(stage, keep_going))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), estimates=st.lists(ESTIMATES, min_size=1, max_size=20))
    def queue(self, data: st.DataObject, estimates: list[Estimate]) -> None:
        stage = data.draw(st.sampled_from(sorted(self.open)))
        for estimate in estimates:
            self.number += 1
            self.queued[stage].append(str(self.number))
            self.handle(ItemQueued(stage, QueuedItem(str(self.number), None, estimate)))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), failures=st.sampled_from([0, 0, 0, 1]), defers=st.booleans())
    def end_batch(self, data: st.DataObject, failures: int, defers: bool) -> None:
        batch = data.draw(st.sampled_from(sorted(self.running)))
        ended = self.running.pop(batch)
        deferred = tuple(one for one in ended.items if data.draw(st.booleans())) if defers else ()
        for one in deferred:
            self.started[ended.stage].remove(one.name)
        if failures and not self.keep_going[ended.stage]:
            self.aborted.add(ended.stage)
        self.handle(BatchEnded(batch, failures, deferred))

    @precondition(lambda self: any(self.awaited.values()))
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        waiting = [(stage, name) for stage, items in sorted(self.awaited.items()) for name in sorted(items)]
        stage, name = data.draw(st.sampled_from(waiting))
        self.handle(ItemReturned(stage, self.awaited[stage].pop(name)))

    @precondition(lambda self: self.crossing)
    @rule(data=st.data())
    def give_back_what_nobody_waits_for(self, data: st.DataObject) -> None:
        stage, one = self.crossing.pop(data.draw(st.integers(0, len(self.crossing) - 1)))
        self.handle(ItemReturned(stage, one))

    @precondition(lambda self: self.requested)
    @rule()
    def grant(self) -> None:
        token = Token()
        self.tokens.add(token)
        self.requested = 0
        self.handle(TokenGranted(token))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), how=st.sampled_from([StageClosed, StageCancelled]))
    def close(self, data: st.DataObject, how: type[StageClosed] | type[StageCancelled]) -> None:
        stage = data.draw(st.sampled_from(sorted(self.open)))
        self.open.remove(stage)
        if how is StageCancelled:
            self.aborted.add(stage)
        self.handle(how(stage))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        stage = data.draw(st.sampled_from(sorted(self.open)))
        if not self.keep_going[stage]:
            self.aborted.add(stage)
        self.handle(StageFailed(stage))

    @invariant()
    def consistent(self) -> None:
        if hasattr(self, "machine"):
            self.machine.check_invariants()
            assert len(self.running) <= self.limit
            for stage, skipped in self.ended.items():
                assert sorted(self.queued[stage]) == sorted([*self.started[stage], *skipped])
                assert not skipped or stage in self.aborted
            # A token is never held for what is awaited.
            assert len(self.tokens) + 1 >= len(self.running) >= len(self.tokens)

    def teardown(self) -> None:
        """From anywhere, every build comes to its end and every token goes back."""
        if not hasattr(self, "machine"):
            return
        for stage in sorted(self.open):
            self.open.remove(stage)
            self.handle(StageClosed(stage))
        while self.running or any(self.awaited.values()):
            for batch in tuple(self.running):
                del self.running[batch]
                self.handle(BatchEnded(batch))
            for stage, items in self.awaited.items():
                while items:
                    self.handle(ItemReturned(stage, items.popitem()[1]))
        self.consistent()
        assert set(self.ended) == set(self.queued)
        assert self.tokens == set()
        assert self.paused == set()


TestRandomHistories = RandomHistories.TestCase
TestRandomHistories.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(st.lists(ESTIMATES, max_size=60), st.integers(1, 4), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_every_completion_order_runs_the_same_items(estimates: list[Estimate], limit: int, random: object) -> None:
    m = machine(limit=limit)
    running: list[int] = []
    started: list[str] = []

    def perform(commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, StartBatch):
                running.append(command.batch)
                started.extend(i.name for i in command.items)
            elif isinstance(command, RequestToken):
                perform(m.handle(TokenGranted(Token())))

    for number, estimate in enumerate(estimates):
        perform(m.handle(ItemQueued(0, QueuedItem(str(number), None, estimate))))
    while running:
        perform(m.handle(BatchEnded(running.pop(random.randrange(len(running))))))  # type: ignore[attr-defined]
    assert sorted(started, key=int) == [str(number) for number in range(len(estimates))]
