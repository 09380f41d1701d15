"""The CPU time that Linux's control groups, v1 and v2, allow this process, as containers set it.

v1 and quotas: https://docs.kernel.org/scheduler/sched-bwc.html, v2: https://docs.kernel.org/admin-guide/cgroup-v2.html
"""

from __future__ import annotations

import os


def cpu_quota(root: str = "/") -> float | None:
    """CPUs' time, such as 1.5, of the tightest quota on this process's group and those above it; None for no limit.

    `root` is the folder that holds `proc` and what is mounted.
    """
    own = {}
    for line in _lines(os.path.join(root, "proc/self/cgroup")):
        _, controllers, group = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), group))
    quotas = []
    for line in _lines(os.path.join(root, "proc/self/mountinfo")):
        mount, _, source = line.partition(" - ")
        kind, _, options = source.split(" ", 2)
        name = "" if kind == "cgroup2" else "cpu"
        if kind not in ("cgroup", "cgroup2") or name not in own or (name and name not in options.split(",")):
            continue
        top, folder = mount.split(" ")[3:5]
        group = own[name]
        # In a container /proc may tell the group's path on the host, of which the mount shows the last part alone.
        below = group[len(top) :] if f"{group}/".startswith(f"{top.rstrip('/')}/") else ""
        folder = os.path.join(root, folder.lstrip("/"))
        for part in ["", *below.split("/")]:
            folder = os.path.join(folder, part)
            quota, period = _quota_v2(folder) if kind == "cgroup2" else _quota_v1(folder)
            if quota.isdecimal() and period.isdecimal() and int(period):  # not "max", nor -1
                quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _quota_v1(folder: str) -> tuple[str, str]:
    """Quota and period in microseconds; empty where there are none."""
    names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    quota, period = (" ".join(_lines(os.path.join(folder, name))) for name in names)
    return quota, period


def _quota_v2(folder: str) -> tuple[str, str]:
    quota, _, period = " ".join(_lines(os.path.join(folder, "cpu.max"))).partition(" ")
    return quota, period


def _lines(path: str) -> list[str]:
    """No lines where there is no file to read: not on Linux, the other version, or a group without a quota."""
    try:
        with open(path) as file:
            return file.read().splitlines()
    except OSError:
        return []
