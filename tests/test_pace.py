"""Whether a request can be done in time: refused once it has shown its pace, given up in the middle, or done."""

from __future__ import annotations

import heapq
import itertools
import re
import types
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from handler import pace
from handler.errors import DeadlineError, TooManyTokensError
from handler.pace import BEST_TOKENS, HALF_LIFE, PROVEN_TOKENS, Budget, Pace, Paces

Refusal = TooManyTokensError | DeadlineError
RUN = 384


class Clock:
    """Stands for the module time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace, "time", types.SimpleNamespace(monotonic=clock.monotonic))
    return clock


class Machine:
    """Computes runs in as many threads as the handler would, each at `speed(number at once)` tokens/s."""

    def __init__(self, clock: Clock, threads: int, speed: Callable[[int], float]) -> None:
        self.paces = Paces()
        self.threads = threads
        self.speed = speed
        self._clock = clock
        self._number = itertools.count()

    def at_once(self, runs: Sequence[int]) -> int:
        return min(self.threads, len(runs))

    def serve(self, runs: Sequence[int], seconds: float) -> Refusal | None:
        """The error that a request ends with; the clock shows when its last run has ended."""
        budget = Budget(self.paces, self.threads, runs, self._clock.now + seconds)
        return self._compute(runs, budget.begin, budget.end)

    def seconds_for(self, runs: Sequence[int]) -> float:
        """How long it takes if nobody refuses it."""
        began = self._clock.now
        self._compute(runs, lambda tokens: None, lambda tokens, began: None)
        taken, self._clock.now = self._clock.now - began, began
        return taken

    def _compute(
        self,
        runs: Sequence[int],
        begin: Callable[[int], float | None],
        end: Callable[[int, float | None], None],
    ) -> Refusal | None:
        waiting = list(reversed(runs))
        computed: list[tuple[float, int, int, float | None]] = []
        error: Refusal | None = None
        while waiting or computed:
            if waiting and len(computed) < self.at_once(runs):
                tokens = waiting.pop()
                try:
                    began = begin(tokens)
                except (TooManyTokensError, DeadlineError) as refusal:
                    error = refusal
                    waiting.clear()
                    continue
                ends = self._clock.now + tokens / self.speed(self.at_once(runs))
                heapq.heappush(computed, (ends, next(self._number), tokens, began))
            else:
                self._clock.now, _, tokens, began = heapq.heappop(computed)
                end(tokens, began)
        return error


def steady(clock: Clock, tokens_per_second: float, threads: int = 1, seconds: float = 20.0) -> Machine:
    """A machine that has computed at this speed for so long, each thread."""
    machine = Machine(clock, threads, lambda at_once: tokens_per_second)
    runs = [RUN] * (1 + threads * int(tokens_per_second * seconds / RUN))
    assert machine.serve(runs, float("inf")) is None
    return machine


def refused(machine: Machine, tokens: int, seconds: float) -> str:
    """The message of a 413."""
    error = machine.serve(runs_of(tokens), seconds)
    assert isinstance(error, TooManyTokensError), error
    return str(error)


def given_up(machine: Machine, tokens: int, seconds: float) -> str:
    """The message of a 503."""
    error = machine.serve(runs_of(tokens), seconds)
    assert isinstance(error, DeadlineError), error
    return str(error)


def runs_of(tokens: int) -> list[int]:
    return [RUN] * (tokens // RUN) + [tokens % RUN] * (tokens % RUN > 0)


def test_a_pace_follows_the_machine_by_time() -> None:
    known = Pace(1)
    for speed in (1000.0, 100.0, 1000.0):
        for _ in range(100):
            known.add(int(speed * HALF_LIFE / 10), HALF_LIFE / 10)
        assert known.recent == pytest.approx(speed, rel=0.02)
    for _ in range(10):  # of one half-life
        known.add(10, HALF_LIFE / 10)
    assert known.recent == pytest.approx(500, rel=0.1)


def test_the_best_pace_is_kept() -> None:
    known = Pace(1)
    best = []
    for tokens, seconds in [
        (BEST_TOKENS - 1, 1.0),
        (1, 0.0),
        (10 * BEST_TOKENS, 100.0),
        (RUN, 1e-3),  # one run that was fast by chance
    ]:
        known.add(tokens, seconds)
        best.append(known.best)
    assert best == [None, BEST_TOKENS, BEST_TOKENS, BEST_TOKENS]


def test_what_fits_is_done(clock: Clock) -> None:
    machine = steady(clock, 1000.0)
    assert machine.serve(runs_of(2000), 2.001) is None


@pytest.mark.parametrize("threads", [1, 6])
def test_what_never_fits_is_refused_with_what_would(clock: Clock, threads: int) -> None:
    machine = steady(clock, 1000.0, threads)
    tokens = 4 * RUN * threads
    seconds = tokens / threads / 1000
    message = (
        f"the texts have {tokens} tokens; at {1000 * threads} tokens/s the function can compute "
        f"{round((seconds - 0.1) * 1000 * threads)} in the {seconds - 0.1:.1f} s it has: send fewer texts per request, "
        "or raise the function's timeout or memory"
    )
    assert refused(machine, tokens, seconds - 0.1 + 1e-9) == message
    assert machine.serve(runs_of(tokens), seconds + 0.001) is None


def test_a_run_that_is_longer_than_the_time_left_does_not_begin(clock: Clock) -> None:
    machine = steady(clock, 1000.0, 2)
    began = clock.now
    assert isinstance(machine.serve([4000, 4000, 4000], 7.0), DeadlineError)
    assert clock.now - began == pytest.approx(4.0)
    assert machine.serve([4000, 4000, 4000], 8.001) is None


def test_the_first_request_is_refused_once_the_best_pace_is_known(clock: Clock) -> None:
    machine = Machine(clock, 1, lambda at_once: 4000.0)
    began = clock.now
    assert "can compute 8000 in" in refused(machine, 100_000, 2.0001)
    assert clock.now - began == pytest.approx((BEST_TOKENS + 2 * RUN) / 4000, abs=RUN / 4000)
    began = clock.now
    assert "can compute 8000 in" in refused(machine, 100_000, 2.0001)
    assert clock.now - began == pytest.approx(PROVEN_TOKENS / 4000)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_runs_of_a_cold_start_decide_nothing(clock: Clock, threads: int) -> None:
    """Each waits seconds for the weights' pages, and all that follow are fast."""
    began = clock.now
    machine = Machine(clock, threads, lambda at_once: 100.0 if clock.now == began else 1000.0)
    assert machine.serve(runs_of(10_000 * threads), 14.0) is None
    assert machine.paces.of(threads).recent == pytest.approx(1000.0)


def test_small_requests_are_not_measured_and_never_refused(clock: Clock) -> None:
    machine = steady(clock, 1000.0)
    machine.speed = lambda at_once: 1.0
    for _ in range(100):
        assert machine.serve([10], 10.0) is None
    assert machine.paces.of(1).recent == pytest.approx(1000.0)


def test_a_pace_that_drops_is_a_matter_of_trying_again(clock: Clock) -> None:
    machine = steady(clock, 1000.0)
    machine.speed = lambda at_once: 100.0
    began = clock.now
    message = given_up(machine, 25_000, 30.0)
    assert clock.now - began < 20
    found = re.fullmatch(
        r"(\d+) of 25000 tokens were computed, and the ([\d.]+) s that are left are too short for the rest at the "
        r"present speed of (\d+) tokens/s: send the request again, with fewer texts if it happens again",
        message,
    )
    assert found, message
    done, left, rate = map(float, found.groups())
    assert 0 < done < 2000
    assert 100 < rate < 1000
    assert rate * left < 25_000 - done


@pytest.mark.parametrize("late", [0.0, 5.0])
def test_no_time_left_is_said_whatever_is_known(clock: Clock, late: float) -> None:
    for machine in (Machine(clock, 1, lambda at_once: 1000.0), steady(clock, 1000.0)):
        message = given_up(machine, 10, -late)
        assert message.startswith(
            "0 of 10 tokens were computed when the function's time was up: send the request again"
        )


def test_no_runs_need_no_time(clock: Clock) -> None:
    assert Machine(clock, 2, lambda at_once: 1000.0).serve([], 1.0) is None


def test_one_slow_run_refuses_nothing(clock: Clock) -> None:
    machine = steady(clock, 7000.0)
    slow = iter([500.0])
    machine.speed = lambda at_once: next(slow, 7000.0)
    assert machine.serve(runs_of(60_000), 12.0) is None


def test_the_pace_of_one_run_promises_nothing_for_several_at_once(clock: Clock) -> None:
    """Two threads on one CPU are each half as fast."""
    machine = Machine(clock, 2, lambda at_once: 1000.0 / at_once)
    for _ in range(2):  # the first is not measured
        assert machine.serve([20 * BEST_TOKENS], float("inf")) is None
    assert "at 1000 tokens/s" in refused(machine, 30_000, 20.0)
    assert machine.serve(runs_of(19_000), 20.0) is None


def test_after_a_slow_phase_nothing_is_refused_that_can_be_done(clock: Clock) -> None:
    machine = steady(clock, 7000.0)
    until = clock.now + 30
    machine.speed = lambda at_once: 700.0
    while clock.now < until:
        assert "at the present speed of" in given_up(machine, 60_000, 29.75)
    machine.speed = lambda at_once: 7000.0
    assert [machine.serve(runs_of(60_000), 29.75) for _ in range(10)] == [None] * 10


class Phase(NamedTuple):
    """A request of the past, and how the machine was then."""

    factor: float
    """Of the speed that it can have."""
    runs: list[int]
    seconds: float


RUNS = st.one_of(
    st.lists(st.integers(2, RUN), min_size=1, max_size=8),
    st.builds(lambda count, last: [RUN] * count + [last], st.integers(1, 200), st.integers(2, RUN)),
)
FACTORS = st.sampled_from([0.01, 0.1, 0.5, 0.9, 1.0])
PHASES = st.builds(Phase, FACTORS, RUNS, st.sampled_from([0.5, 2.75, 29.75]))


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(
    past=st.lists(PHASES, max_size=12),
    now=st.lists(PHASES, min_size=1, max_size=6),
    factor=FACTORS,
    threads=st.integers(1, 6),
    cpus=st.sampled_from([0.3, 1.0, 1.77, 6.0]),
)
@example(
    past=[Phase(0.01, [2], 0.5), Phase(0.1, [346, 384], 0.5)],
    now=[Phase(0.01, [RUN] * 6 + [92], 2.75), Phase(0.01, [106, 384], 0.5), Phase(0.01, [7, 116, 357, 248, 161], 0.5)],
    factor=1.0,
    threads=2,
    cpus=0.3,
)
@example(past=[Phase(0.1, [RUN] * 60, 29.75)] * 6, now=[Phase(1, [RUN] * 150, 29.75)], factor=1.0, threads=1, cpus=1.0)
def test_whatever_was_before_what_can_be_done_is_done(
    past: list[Phase], now: list[Phase], factor: float, threads: int, cpus: float
) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace, "time", types.SimpleNamespace(monotonic=clock.monotonic))

        def speed(factor: float) -> Callable[[int], float]:
            return lambda at_once: 7000.0 * min(1, cpus / at_once) * factor

        machine = Machine(clock, threads, speed(1))
        false_refusals = 0
        proven: dict[int, float] = {}
        for steadily, phase in [*((False, each) for each in past), *((True, each) for each in now)]:
            at_once = machine.at_once(phase.runs)
            machine.speed = speed(factor if steadily else phase.factor)
            each = machine.speed(at_once)
            needed = machine.seconds_for(phase.runs)
            began = clock.now
            error = machine.serve(phase.runs, phase.seconds)
            assert clock.now - began <= phase.seconds + (max(phase.runs) / each) * 1.001
            if needed > phase.seconds + max(phase.runs) / each * 1.001:
                assert error is not None
            if isinstance(error, TooManyTokensError):
                assert needed * each * 1.001 > phase.seconds * max(each, proven.get(at_once, 0.0))
            if error is None and sum(phase.runs) > 2 * BEST_TOKENS + threads * RUN:
                proven[at_once] = max(each, proven.get(at_once, 0.0))
            if steadily and error is not None and needed < phase.seconds * 0.999:
                false_refusals += 1
        assert false_refusals == 0
