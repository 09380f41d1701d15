"""CPU quotas of containers: files of both versions of control groups as systems show them, and the kernel's own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.cgroups import limited, unavailable
from handler.cgroup import cpu_quota
from tests.support.servers import ROOT

V1 = "33 24 0:28 {top} /sys/fs/cgroup/cpu,cpuacct ro,nosuid shared:9 master:3 - cgroup cgroup rw,cpu,cpuacct"
V1_MEMORY = "34 24 0:29 / /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory"
V2 = "35 24 0:30 {top} /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate"
V2_BESIDE_V1 = "36 24 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
OTHER = "22 21 0:20 / /proc rw,nosuid - proc proc rw"


def quota_v1(folder: str, quota: str, period: str = "100000") -> dict[str, str]:
    folder = f"sys/fs/cgroup/cpu,cpuacct/{folder}"
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": f"{period}\n"}


def quota_v2(folder: str, quota: str) -> dict[str, str]:
    return {f"sys/fs/cgroup/{folder}/cpu.max": f"{quota}\n"}


SYSTEMS: Mapping[str, tuple[list[str], list[str], dict[str, str], float | None]] = {
    "docker, v2": ([V2.format(top="/")], ["0::/"], quota_v2("", "150000 100000"), 1.5),
    "docker, v2, no quota": ([V2.format(top="/")], ["0::/"], quota_v2("", "max 100000"), None),
    "docker, v2, the host's groups": (
        [V2.format(top="/")],
        ["0::/system.slice/docker-5c0.scope"],
        quota_v2("system.slice/docker-5c0.scope", "50000 100000"),
        0.5,
    ),
    "systemd, v2, a slice above": (
        [V2.format(top="/")],
        ["0::/a.slice/b.service"],
        quota_v2("a.slice", "100000 100000") | quota_v2("a.slice/b.service", "300000 100000"),
        1.0,
    ),
    "a process outside of its namespace, v2": (
        [V2.format(top="/..")],
        ["0::/../other"],
        quota_v2("", "200000 100000"),
        2.0,
    ),
    "docker, v1": (
        [OTHER, V1.format(top="/docker/5c0"), V1_MEMORY],
        ["12:memory:/docker/5c0", "4:cpu,cpuacct:/docker/5c0", "0::/docker/5c0"],
        quota_v1("", "200000"),
        2.0,
    ),
    "docker, v1, no quota": (
        [V1.format(top="/docker/5c0")],
        ["4:cpu,cpuacct:/docker/5c0"],
        quota_v1("", "-1"),
        None,
    ),
    "docker, v1, the host's path under another mount": (
        [V1.format(top="/")],
        ["4:cpu,cpuacct:/docker/5c0"],
        quota_v1("", "25000", "50000"),
        0.5,
    ),
    "a group whose name begins as the mount's, v1": (
        [V1.format(top="/docker/5c")],
        ["4:cpu,cpuacct:/docker/5c0"],
        quota_v1("", "-1") | quota_v1("0", "100000"),
        None,
    ),
    "kubernetes, v1, a pod above": (
        [V1.format(top="/"), V2_BESIDE_V1],
        ["4:cpuacct,cpu:/kubepods/pod7/5c0", "0::/kubepods/pod7/5c0"],
        quota_v1("kubepods/pod7", "100000") | quota_v1("kubepods/pod7/5c0", "-1"),
        1.0,
    ),
    "a period of nothing": ([V1.format(top="/")], ["4:cpu,cpuacct:/"], quota_v1("", "100000", "0"), None),
    "no control groups mounted": ([OTHER], ["0::/"], {}, None),
}
"""Lines of /proc/self/mountinfo and /proc/self/cgroup, files below the root, and the quota."""


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_tightest_quota_counts(tmp_path: Path, name: str) -> None:
    mounts, groups, files, quota = SYSTEMS[name]
    proc = {"proc/self/mountinfo": "\n".join(mounts) + "\n", "proc/self/cgroup": "\n".join(groups) + "\n"}
    for path, content in {**files, **proc}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    assert cpu_quota(str(tmp_path)) == quota


def test_no_quota_is_known_without_proc(tmp_path: Path) -> None:
    assert cpu_quota(str(tmp_path)) is None


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
@pytest.mark.parametrize(("cpus", "threads"), [(0.3, 1), (1.0, 1), (64.0, None)])
def test_threads_follow_a_quota_of_the_kernel(
    monkeypatch: pytest.MonkeyPatch, cpus: float, threads: int | None
) -> None:
    monkeypatch.delenv("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", raising=False)
    program = "import os; from handler.embedder import default_threads as t; print(t(), len(os.sched_getaffinity(0)))"
    with limited(None, cpus) as limits:
        command = limits.command([sys.executable, "-c", program])
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    found, allowed = map(int, ran.stdout.split())
    assert found == (threads or allowed)
