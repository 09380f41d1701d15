"""A skip that nobody allowed fails the run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import ROOT

TEST = """
import pytest
from tests.support.skips import pytest_sessionfinish as pytest_sessionfinish

def test_passes() -> None:
    assert True

@pytest.mark.skipif(True, reason="the CPU (x86) has no neon")
def test_skipped() -> None:
    assert False
"""


def run(folder: Path, allowed: str | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(TEST)
    (folder / "test_one.py").write_text(TEST)
    (folder / "pytest.ini").write_text("[pytest]\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TEST_ALLOWED_SKIPS", None)
    if allowed is not None:
        (folder / "allowed").write_text(allowed)
        environment["TEST_ALLOWED_SKIPS"] = str(folder / "allowed")
    command = [sys.executable, "-m", "pytest", "-q", "test_one.py", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "processes", [[], pytest.param(["-n", "2"], marks=pytest.mark.slow)], ids=["one process", "xdist"]
)
@pytest.mark.parametrize(
    ("allowed", "status"),
    [
        (None, 0),
        ("the CPU .* has no (neon|avx2) # CPUs differ\n", 0),
        ("# nothing\n", 1),
        ("has no neon # a reason is matched from its beginning\n", 1),
    ],
)
def test_only_what_is_allowed_is_skipped(
    tmp_path: Path, allowed: str | None, status: int, processes: list[str]
) -> None:
    ran = run(tmp_path, allowed, *processes)
    assert ran.returncode == status, ran.stdout + ran.stderr
    assert ("does not allow it: the CPU (x86) has no neon" in ran.stdout) == (status == 1)
    assert "1 passed, 1 skipped" in ran.stdout


def test_a_pattern_says_why(tmp_path: Path) -> None:
    ran = run(tmp_path, "the CPU\n")
    assert ran.returncode != 0
    assert "'the CPU' does not say why these tests may be skipped" in ran.stdout + ran.stderr
