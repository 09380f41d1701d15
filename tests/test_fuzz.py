"""A short run of the coverage-guided fuzzer; for a long one see tests/clients/fuzz_events.py."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.servers import CLIENTS, ROOT

pytestmark = pytest.mark.slow

SECONDS = 20


def test_twenty_seconds_of_fuzzing_find_nothing(tmp_path: Path, model_cache: Path) -> None:
    """`model_cache` because the fuzzer takes the tokenizer from there."""
    python = CLIENTS / "bin" / "python"
    if not (CLIENTS / ".done").exists():
        pytest.skip("the fuzzer is not installed: make clients")
    if not list(CLIENTS.glob("lib/python*/site-packages/atheris")):
        pytest.skip("atheris has wheels for x86_64 and Python up to 3.13 only: make -B clients PYTHON=python3.13")
    command = [str(python), "-m", "tests.clients.fuzz_events", str(tmp_path / "corpus")]
    # Without libFuzzer's limit of memory: what it reads as its own peak is this process's, from which it was forked.
    command += [f"-max_total_time={SECONDS}", "-rss_limit_mb=0"]
    ran = subprocess.run(
        command,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        timeout=SECONDS + 100,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    done = re.search(r"Done (\d+) runs", ran.stderr)
    assert done, ran.stderr[-4000:]
    outcomes = json.loads(re.findall(r"^outcomes: (.+)$", ran.stderr, re.MULTILINE)[-1])
    expected = {"200", "204", "400", "404", "405", "413", "ok", "direct 400", "direct 413"}
    assert expected <= set(outcomes), "the fuzzer does not come so far"
    assert int(done[1]) > 1000
