"""A child process under limits of memory and CPU, as Lambda's memory sizes set them. Linux, control groups v1 or v2.

v1: https://docs.kernel.org/admin-guide/cgroup-v1/memory.html, v2: https://docs.kernel.org/admin-guide/cgroup-v2.html,
CPU quotas: https://docs.kernel.org/scheduler/sched-bwc.html
"""

from __future__ import annotations

import os
import shlex
import signal
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PERIOD_US = 20_000
"""Microseconds after which the CPU quota is renewed. AWS does not document Lambda's period; this is an assumption. It
decides how long a throttled process waits: with Linux's default of 100 ms, a process of 0.3 CPUs would run for up to
30 ms at full speed, long enough for whole requests, and then pause for 70."""

_CONTROLLERS = ("memory", "cpu")
_EMPTY_SECONDS = 10.0
"""How long a killed group may take to become empty. Freeing gigabytes takes a while."""


class CgroupError(Exception):
    """Limits cannot be set here; the message says why."""


@dataclass(frozen=True)
class Limits:
    """Groups that are in force until the block of `limited` ends. `memory` and `cpu` are one folder with v2."""

    memory: Path | None
    cpu: Path | None

    @property
    def folders(self) -> tuple[Path, ...]:
        """The groups, each once."""
        return tuple(dict.fromkeys(folder for folder in (self.memory, self.cpu) if folder is not None))

    def command(self, command: Sequence[str]) -> list[str]:
        """The command that enters the groups and then becomes `command`, whose memory counts from its first page."""
        enter = [f"echo $$ > {shlex.quote(str(folder / 'cgroup.procs'))}" for folder in self.folders]
        return ["/bin/sh", "-c", " && ".join([*enter, 'exec "$@"']), "sh", *command]

    def out_of_memory(self) -> bool:
        """Whether the kernel has killed a process of the group because of its memory limit."""
        if self.memory is None:
            return False
        for name in ("memory.oom_control", "memory.events"):  # v1, v2
            with suppress(FileNotFoundError):
                fields = dict(line.split() for line in (self.memory / name).read_text().splitlines())
                return int(fields["oom_kill"]) > 0
        raise CgroupError(f"{self.memory} does not tell whether a process was killed")

    def peak_memory_mb(self) -> float | None:
        """The most that the group has held, page cache included, in MB of 2**20 bytes; None where it is not known."""
        if self.memory is None:
            return None
        for name in ("memory.max_usage_in_bytes", "memory.peak"):  # v1, v2 since Linux 5.19
            with suppress(FileNotFoundError):
                return int((self.memory / name).read_text()) / 2**20
        return None


@contextmanager
def limited(memory_mb: int | None, cpus: float | None) -> Iterator[Limits]:
    """Fresh groups with at most `memory_mb` MB of 2**20 bytes and no swap, and `cpus` CPUs' time; None for no limit.

    When the block ends, whatever still runs in the groups is killed and the groups are removed.
    Raises CgroupError if they cannot be made.
    """
    name = f"benchmark-{uuid.uuid4().hex}"
    made: list[Path] = []
    try:
        try:
            memory = None if memory_mb is None else _make(_parent("memory") / name, made)
            cpu = None if cpus is None else _make(_parent("cpu") / name, made)
            if memory is not None and memory_mb is not None:
                _limit_memory(memory, memory_mb * 2**20)
            if cpu is not None and cpus is not None:
                _limit_cpu(cpu, round(cpus * PERIOD_US))
        except OSError as error:
            raise CgroupError(f"cannot set limits of memory and CPU: {error}") from error
        yield Limits(memory, cpu)
    finally:
        for folder in made:
            _remove(folder)


def unavailable() -> str | None:
    """Why limits cannot be set here, or None where they can."""
    try:
        with limited(64, 0.5):
            return None
    except CgroupError as error:
        return str(error)


def _make(folder: Path, made: list[Path]) -> Path:
    if folder not in made:
        folder.mkdir()
        made.append(folder)
    return folder


def _limit_memory(folder: Path, limit: int) -> None:
    """`limit` in bytes. Swap is shut off too, where the kernel accounts for it."""
    if (folder / "memory.max").exists():
        (folder / "memory.max").write_text(str(limit))
        if (folder / "memory.swap.max").exists():
            (folder / "memory.swap.max").write_text("0")
        return
    (folder / "memory.limit_in_bytes").write_text(str(limit))
    if (folder / "memory.memsw.limit_in_bytes").exists():  # memory and swap together
        (folder / "memory.memsw.limit_in_bytes").write_text(str(limit))


def _limit_cpu(folder: Path, quota_us: int) -> None:
    """Allow `quota_us` microseconds of CPU time in each PERIOD_US."""
    if (folder / "cpu.max").exists():
        (folder / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
        return
    (folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
    (folder / "cpu.cfs_quota_us").write_text(str(quota_us))


def _remove(folder: Path) -> None:
    """Kill what is in the group, and remove it as soon as it is empty.

    Raises CgroupError if it does not become so.
    """
    deadline = time.monotonic() + _EMPTY_SECONDS
    while True:
        for process in (folder / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        try:
            folder.rmdir()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise CgroupError(f"cannot remove {folder}: {error}") from error
        time.sleep(0.01)


def _parent(controller: str) -> Path:
    """The group below which a fresh one of that controller can be made.

    It lies below this process's own, so that limits already in force stay so. With v2 a group that holds processes
    cannot share out memory, except for the root: then the fresh group is made beside this process's own.
    Raises CgroupError.
    """
    mounts = _mounts()
    own = _own_groups()
    if controller in mounts:
        group = mounts[controller] / own.get(controller, "")
        # A container may see its own group as the root of the mount, while /proc names the host's path.
        return group if group.is_dir() else mounts[controller]
    if "" not in mounts:
        raise CgroupError(f"no control group file system with the controller {controller!r} is mounted")
    group = mounts[""] / own.get("", "")
    for candidate in (group, group.parent) if group != mounts[""] else (group,):
        with suppress(OSError):
            if set(_CONTROLLERS) <= set((candidate / "cgroup.subtree_control").read_text().split()):
                return candidate
    raise CgroupError(f"{group} does not share out the controllers {' and '.join(_CONTROLLERS)}")


def _mounts() -> dict[str, Path]:
    """Where each controller of v1 is mounted, and v2 under the name ""."""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError as error:
        raise CgroupError(f"control groups need Linux: {error}") from error
    found: dict[str, Path] = {}
    for _, folder, kind, options, *_ in (line.split() for line in lines):
        if kind == "cgroup2":
            found[""] = Path(folder)
        if kind == "cgroup":
            found |= {name: Path(folder) for name in options.split(",") if name in _CONTROLLERS}
    return found


def _own_groups() -> dict[str, str]:
    """This process's group for each controller of v1, and for v2 under the name ""."""
    return parse_groups(Path("/proc/self/cgroup").read_text())


def parse_groups(text: str) -> dict[str, str]:
    """The content of /proc/<id>/cgroup, from controller to group without its leading slash; v2 has the name "".

    >>> parse_groups("4:memory:/jobs/7\\n2:cpu,cpuacct:/\\n0::/user")
    {'memory': 'jobs/7', 'cpu': '', 'cpuacct': '', '': 'user'}
    """
    rows = [line.split(":", 2) for line in text.splitlines()]
    return {name: path.lstrip("/") for _, names, path in rows for name in names.split(",")}
