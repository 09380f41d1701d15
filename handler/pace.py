"""How fast vectors are computed, and whether a request can be done in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import NoReturn

from handler.errors import DeadlineError, TooManyTokensError

PROVEN_TOKENS = 384
"""Tokens that a request computes before it can be refused for its pace: a full run. A smaller request is not measured,
since its runs are small and slower per token."""

BEST_TOKENS = 4096
"""Tokens over which the best pace is measured: many runs, since one may be fast by chance."""

HALF_LIFE = 3.0
"""Seconds of computing after which a measurement counts half."""


class Pace:
    """Measured speed of one thread while `at_once` threads compute."""

    def __init__(self, at_once: int) -> None:
        self.best: float | None = None
        """Highest tokens per second over BEST_TOKENS; None until that many were computed."""
        self._half_life = HALF_LIFE * at_once  # each thread adds its seconds
        self._tokens = self._seconds = 0.0
        self._stretch_tokens = self._stretch_seconds = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Add a run to the measurement."""
        weight = 0.5 ** (seconds / self._half_life)
        self._tokens = self._tokens * weight + tokens
        self._seconds = self._seconds * weight + seconds
        self._stretch_tokens += tokens
        self._stretch_seconds += seconds
        if self._stretch_tokens >= BEST_TOKENS:
            self.best = max(self.best or 0.0, _rate(self._stretch_tokens, self._stretch_seconds))
            self._stretch_tokens = self._stretch_seconds = 0.0

    @property
    def recent(self) -> float:
        """Tokens per second; older runs count less."""
        return _rate(self._tokens, self._seconds)


class Paces:
    """The speeds measured in this environment: a pace for each number of runs at once, since they share its CPUs."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.warm = False
        """Whether a run has ended. The first is not measured: the weights are still read from EFS, or from a SnapStart
        snapshot, while it is computed."""
        self._paces: dict[int, Pace] = {}

    def of(self, at_once: int) -> Pace:
        """The pace of each of `at_once` runs that are computed together."""
        if at_once not in self._paces:
            self._paces[at_once] = Pace(at_once)
        return self._paces[at_once]


class Budget:
    """The time that a request has for its runs."""

    def __init__(self, paces: Paces, threads: int, runs: Sequence[int], deadline: float) -> None:
        """`runs` are the tokens of each run, `deadline` is a value of `time.monotonic()`."""
        self._paces = paces
        self._at_once = max(1, min(threads, len(runs)))
        self._pace = paces.of(self._at_once)
        self._tokens = self._waiting = sum(runs)
        self._deadline = deadline
        self._seconds = deadline - time.monotonic()
        self._own_tokens = self._own_seconds = 0.0

    def begin(self, tokens: int) -> float | None:
        """Note that a run begins, and return its start for `end`; None if it is not measured.

        Raises DeadlineError if the time is up, or too short for the runs that have not begun, at the faster of the
        request's own pace and the recent one. Paces count after PROVEN_TOKENS of the request, or, while no best pace
        is known, after BEST_TOKENS. Raises TooManyTokensError instead if all its tokens take longer than its whole
        time even at the best pace of this environment: sent again, it would be refused again.
        """
        now = time.monotonic()
        left = self._deadline - now
        with self._paces.lock:
            if left <= 0:
                self._refuse(left, None)
            if self._own_tokens >= (BEST_TOKENS if self._pace.best is None else PROVEN_TOKENS):
                rate = max(_rate(self._own_tokens, self._own_seconds), self._pace.recent)
                # At best the threads share the waiting tokens equally; but this run, the longest, ends no sooner.
                if max(self._waiting / self._at_once, tokens) > rate * left:
                    self._refuse(left, rate)
            self._waiting -= tokens
            return now if self._paces.warm and self._tokens >= PROVEN_TOKENS else None

    def end(self, tokens: int, began: float | None) -> None:
        """Note that a run has ended; `began` is what `begin` returned for it."""
        now = time.monotonic()
        with self._paces.lock:
            self._paces.warm = True
            if began is not None:
                self._own_tokens += tokens
                self._own_seconds += now - began
                self._pace.add(tokens, now - began)

    def _refuse(self, left: float, rate: float | None) -> NoReturn:
        """Raise the error for a request with `left` seconds left; `rate` is each thread's, None if the time is up."""
        best = max(self._pace.best or 0.0, _rate(self._own_tokens, self._own_seconds))
        if self._pace.best and self._seconds > 0 and self._tokens > best * self._at_once * self._seconds:
            now = self._at_once * (best if rate is None else min(best, rate))
            raise TooManyTokensError(
                f"the texts have {self._tokens} tokens; at {now:.0f} tokens/s the function can compute "
                f"{int(now * self._seconds)} in the {self._seconds:.1f} s it has: send fewer texts per request, or "
                "raise the function's timeout or memory"
            )
        computed = f"{self._tokens - self._waiting} of {self._tokens} tokens were computed"
        again = "send the request again, with fewer texts if it happens again"
        if rate is None:
            raise DeadlineError(f"{computed} when the function's time was up: {again}")
        raise DeadlineError(
            f"{computed}, and the {left:.1f} s that are left are too short for the rest at the present speed of "
            f"{rate * self._at_once:.0f} tokens/s: {again}"
        )


def _rate(tokens: float, seconds: float) -> float:
    return tokens / max(seconds, 1e-9)
