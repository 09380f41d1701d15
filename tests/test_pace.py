"""Whether a request can be done in time: refused at the start, given up in the middle, or done."""

from __future__ import annotations

import re
import types

import pytest

from handler import pace
from handler.errors import DeadlineError, TooManyTokensError
from handler.pace import PROVEN_TOKENS, REMEMBERED_TOKENS, Budget, Pace


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


def measured(tokens_per_second: float, tokens: int = 10_000) -> Pace:
    known = Pace()
    known.add(tokens, tokens / tokens_per_second)
    return known


def test_a_pace_is_known_after_a_whole_run() -> None:
    known = Pace()
    assert known.tokens_per_second is None
    known.add(PROVEN_TOKENS - 1, 1.0)
    assert known.tokens_per_second is None
    known.add(1, 1.0)
    assert known.tokens_per_second == PROVEN_TOKENS / 2


def test_a_pace_without_time_is_not_known() -> None:
    known = Pace()
    known.add(PROVEN_TOKENS, 0.0)
    assert known.tokens_per_second is None


def test_a_pace_follows_the_machine() -> None:
    known = measured(1000.0, 10 * REMEMBERED_TOKENS)
    for _ in range(20):
        known.add(REMEMBERED_TOKENS, REMEMBERED_TOKENS / 100.0)
    assert known.tokens_per_second == pytest.approx(100.0, rel=0.01)


def test_what_fits_is_let_through(clock: Clock) -> None:
    budget = Budget(measured(1000.0), 1, 2000, clock.now + 2)
    budget.check()
    clock.now += 1.0
    budget.done = 1000
    budget.check()
    clock.now += 1.0
    budget.done = 2000
    budget.check()


@pytest.mark.parametrize("threads", [1, 6])
def test_what_does_not_fit_is_refused_with_what_would(clock: Clock, threads: int) -> None:
    budget = Budget(measured(1000.0), threads, 2000 * threads + 1, clock.now + 2)
    message = (
        f"the texts have {2000 * threads + 1} tokens, and at {1000 * threads} tokens/s the 2.0 s that the function has "
        f"are enough for {2000 * threads}: send fewer texts a request, or raise the function's timeout or memory"
    )
    with pytest.raises(TooManyTokensError, match=re.escape(message)):
        budget.check()
    Budget(measured(1000.0), threads, 2000 * threads, clock.now + 2).check()


def test_the_first_request_is_refused_after_its_first_run(clock: Clock) -> None:
    unknown = Pace()
    budget = Budget(unknown, 1, 100_000, clock.now + 2)
    budget.check()
    clock.now += 0.1
    unknown.add(384, 0.1)
    budget.done = 384
    with pytest.raises(TooManyTokensError, match="enough for 7680"):
        budget.check()


def test_a_pace_that_drops_is_a_matter_of_trying_again(clock: Clock) -> None:
    slowing = measured(1000.0)
    budget = Budget(slowing, 1, 2000, clock.now + 2)
    budget.check()
    clock.now += 1.5
    slowing.add(500, 1.5)
    budget.done = 500
    with pytest.raises(DeadlineError, match="500 of 2000 tokens were computed"):
        budget.check()


@pytest.mark.parametrize("late", [0.0, 5.0])
def test_no_time_left_is_said_before_anything_is_known(clock: Clock, late: float) -> None:
    budget = Budget(Pace(), 1, 10, clock.now + 1)
    clock.now += 1 + late
    with pytest.raises(DeadlineError, match="0 of 10 tokens"):
        budget.check()


def test_a_deadline_that_is_past_names_no_negative_numbers(clock: Clock) -> None:
    with pytest.raises(TooManyTokensError, match=r"the 0\.0 s that the function has are enough for 0:"):
        Budget(measured(1000.0), 1, 10, clock.now - 3).check()


def test_a_pace_spoilt_by_one_slow_run_recovers_from_refusals(clock: Clock) -> None:
    """A first run that waited for a disk must not decide over all later requests of an environment."""
    known = Pace()
    known.add(384, 2.5)
    for _ in range(1000):
        budget = Budget(known, 1, 10_000, clock.now + 2.75)
        try:
            while budget.done < 10_000:
                budget.check()
                known.add(384, 384 / 7000)  # as fast as it ever was
                clock.now += 384 / 7000
                budget.done += 384
        except (TooManyTokensError, DeadlineError):
            continue
        return
    pytest.fail("refused for ever")
