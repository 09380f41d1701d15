"""How fast vectors are computed, and whether a request can be done in time."""

from __future__ import annotations

import time

from handler.errors import DeadlineError, TooManyTokensError

PROVEN_TOKENS = 384
"""Tokens after which the measured pace is believed: a full run, the first one, which is slow, not alone."""

REMEMBERED_TOKENS = 1 << 16
"""After so many tokens the older ones count half."""


class Pace:
    """Measured speed of one thread."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Take account of a run."""
        if self._tokens > REMEMBERED_TOKENS:
            self._tokens /= 2
            self._seconds /= 2
        self._tokens += tokens
        self._seconds += seconds

    def doubt(self) -> None:
        """Count what was measured half. What is refused is not measured, and a pace must not stand for ever."""
        self._tokens /= 2
        self._seconds /= 2

    @property
    def tokens_per_second(self) -> float | None:
        """None until enough has been measured."""
        if self._tokens < PROVEN_TOKENS or self._seconds <= 0:
            return None
        return self._tokens / self._seconds


class Budget:
    """The time that a request has for its tokens."""

    def __init__(self, pace: Pace, threads: int, tokens: int, deadline: float) -> None:
        """`deadline` is a value of `time.monotonic()`."""
        self.done = 0
        """Tokens computed so far."""
        self._pace = pace
        self._threads = threads
        self._tokens = tokens
        self._deadline = deadline
        self._seconds = deadline - time.monotonic()
        self._promised = False

    def check(self) -> None:
        """Raise TooManyTokensError if the pace shows that the time is too short for all tokens, whenever they begin.

        Raises DeadlineError if that was not so before and the rest cannot be done in time any more.
        """
        left = self._deadline - time.monotonic()
        pace = self._pace.tokens_per_second
        if pace is None:
            if left <= 0:
                raise DeadlineError(self._too_late())
            return
        rate = pace * self._threads
        if not self._promised and self._tokens > rate * self._seconds:
            self._pace.doubt()
            raise TooManyTokensError(
                f"the texts have {self._tokens} tokens, and at {rate:.0f} tokens/s the {max(0.0, self._seconds):.1f} s "
                f"that the function has are enough for {max(0, int(rate * self._seconds))}: send fewer texts a "
                "request, or raise the function's timeout or memory"
            )
        self._promised = True
        if self._tokens - self.done > rate * left:
            raise DeadlineError(self._too_late())

    def _too_late(self) -> str:
        return (
            f"{self.done} of {self._tokens} tokens were computed when the function's time was up: send the request "
            "again, with fewer texts if it happens again"
        )
