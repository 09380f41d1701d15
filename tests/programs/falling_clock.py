"""The real handler on a machine whose clock is a minute earlier each time it is read."""

import itertools
import time

_now, _minutes = time.time, itertools.count()
time.time = lambda: _now() - 60 * next(_minutes)

from handler.app import lambda_handler as lambda_handler  # noqa: E402  the clock comes first
