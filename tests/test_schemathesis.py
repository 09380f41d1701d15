"""Schemathesis against a running service: every answer is what the OpenAPI document says, for both kinds of events."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.servers import CLIENTS, ROOT, Local

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("payload_format", ["2.0", "1.0"])
def test_answers_are_what_the_document_says(start: Callable[..., Local], tmp_path: Path, payload_format: str) -> None:
    if not (CLIENTS / ".done").exists():
        pytest.skip("schemathesis is not installed: make clients")
    local = start("--payload-format", payload_format)
    ran = subprocess.run(
        [str(CLIENTS / "bin" / "python"), str(ROOT / "tests" / "clients" / "check_openapi.py"), local.url],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    # Reports of failures quote whole requests, of a megabyte and more.
    report = "\n".join(line[:400] for line in (ran.stdout + ran.stderr).splitlines())
    assert ran.returncode == 0, report
    cases = re.search(r"(\d+) generated, (\d+) passed", ran.stdout)
    assert cases, report
    assert int(cases[1]) == int(cases[2]) > 500
    assert "Tested: 10" in ran.stdout
