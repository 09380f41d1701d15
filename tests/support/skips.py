"""Skipped tests fail a run whose environment names the file of what may be skipped (TEST_ALLOWED_SKIPS)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import pytest


def allowed(path: Path) -> list[re.Pattern[str]]:
    """The regular expressions of a file, one a line; what follows ` # ` says why, and is needed."""
    lines = [line for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    patterns = []
    for line in lines:
        pattern, mark, why = line.partition(" # ")
        if not mark or not why.strip():
            raise pytest.UsageError(f"{path}: {line!r} does not say why these tests may be skipped: PATTERN # WHY")
        patterns.append(re.compile(pattern.strip()))
    return patterns


def refused(reasons: Iterable[str], patterns: Iterable[re.Pattern[str]]) -> list[str]:
    """The reasons that no pattern matches from their beginning, each once."""
    patterns = list(patterns)
    return sorted({reason for reason in reasons if not any(pattern.match(reason) for pattern in patterns)})


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Let the run fail where a reason to skip is not allowed. With pytest-xdist, in the process that collects."""
    path = os.environ.get("TEST_ALLOWED_SKIPS")
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not path or reporter is None or hasattr(session.config, "workerinput"):
        return
    reasons = (report.longrepr[2].removeprefix("Skipped: ") for report in reporter.stats.get("skipped", ()))
    if found := refused(reasons, allowed(Path(path))):
        reporter.write_line("")
        for reason in found:
            reporter.write_line(f"skipped, and {path} does not allow it: {reason}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
