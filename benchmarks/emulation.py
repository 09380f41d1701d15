"""CPUs that this machine can emulate: what each needs and how it runs a Python program.

`python -m benchmarks.emulation` prepares what can be prepared: an arm64 Python with the deployed packages, below
build/. Nothing is installed into the system. Emulated is the instruction set alone, so speed says nothing.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES: tuple[str, ...] = tuple(
    tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
)
"""What is deployed, with versions: `numpy==...`."""
FURTHER_NAMES = (
    *("ml_dtypes", "mpmath", "onnx", "packaging", "protobuf", "sympy", "typing_extensions"),
    *("iniconfig", "pluggy", "pygments", "pytest"),
)
FURTHER_PACKAGES = tuple(
    line
    for line in (ROOT / "constraints.txt").read_text("utf-8").split()
    if line.split("==")[0].lower() in FURTHER_NAMES
)
"""What `python -m quantize` and the operators' tests need beside them."""
VERSIONS = hashlib.sha256("\n".join([*PACKAGES, *FURTHER_PACKAGES]).encode()).hexdigest()[:16]
ARM64 = ROOT / "build" / "portability" / f"arm64-{VERSIONS}"
"""Root of the arm64 system. Other versions of the packages make another folder."""

PYTHON = "3.11"  # Debian 12's
DEBIAN_PACKAGES = (
    f"python{PYTHON}-minimal",
    f"libpython{PYTHON}-minimal",
    f"libpython{PYTHON}-stdlib",
    "libc6",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "libstdc++6",
    "zlib1g",
)

# cpuinfo, from which onnxruntime learns what the CPU can do, crashes on the entries of an x86 machine. With no entries
# onnxruntime starts as well, but warns that it does not know the CPU's features.
CPU_LIST = "0-1\n"
CPUINFO = """\
processor\t: {}
BogoMIPS\t: 243.75
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

"""
"""An entry of Graviton2's /proc/cpuinfo."""
MASKED = """
mount --bind "$0/graviton2/cpu" /sys/devices/system/cpu
mount --bind "$0/graviton2/cpuinfo" /proc/cpuinfo
exec "$@"
"""
UNSHARE = ["unshare", "--mount", "sh", "-ec", MASKED, str(ARM64)]

EMULATORS = {"native": [], "haswell": ["qemu-x86_64"], "graviton2": ["qemu-aarch64"]}
CPUS = tuple(EMULATORS)


class PreparationError(Exception):
    """The arm64 system cannot be made; the message says what is missing."""


def missing(cpu: str) -> str | None:
    """What this machine lacks to run a program on that CPU; None if nothing."""
    for program in EMULATORS[cpu]:
        if not shutil.which(program):
            return f"{program} is not on PATH: apt-get install qemu-user"
    if cpu == "haswell" and platform.machine() != "x86_64":
        return f"this machine is {platform.machine()}, so its Python does not run on an x86 CPU"
    if cpu == "graviton2":
        if not ARM64.exists():
            return f"{ARM64} does not exist: make portability"
        if not shutil.which("unshare"):
            return "unshare is not on PATH: apt-get install util-linux"
        probe = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)  # noqa: S603
        if probe.returncode:
            return f"mounting in a namespace of one's own needs root: {probe.stderr.strip()}"
    return None


def command(cpu: str, arguments: Sequence[str], *options: str) -> tuple[list[str], Mapping[str, str]]:
    """Command and environment that run Python with some arguments on that CPU, our packages and onnxruntime at hand.

    `options` are the emulator's.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if cpu == "native":
        return [sys.executable, *arguments], environment
    if cpu == "haswell":
        return ["qemu-x86_64", *options, "-cpu", "Haswell", sys.executable, *arguments], environment
    environment["PYTHONPATH"] += f":{ARM64 / 'site-packages'}"
    python = str(ARM64 / f"usr/bin/python{PYTHON}")
    emulator = ["qemu-aarch64", *options, "-cpu", "neoverse-n1", "-L", str(ARM64)]
    return [*UNSHARE, *emulator, python, *arguments], environment


def prepare() -> None:
    """Fill ARM64 with Debian's Python and the deployed packages, unless it is there.

    Raises PreparationError.
    """
    if ARM64.exists():
        return
    for program in ("apt-get", "dpkg"):
        if not shutil.which(program):
            raise PreparationError(f"{program} is not on PATH: the arm64 Python comes from Debian packages")
    ARM64.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ARM64.parent, prefix=".new-") as name:
        workdir = Path(name)
        root = workdir / "root"
        for package in download_debian_packages(workdir):
            run(["dpkg", "-x", str(package), str(root)])
        run([*PIP_INSTALL, "--target", str(root / "site-packages"), *PACKAGES, *FURTHER_PACKAGES])
        (root / "graviton2" / "cpu").mkdir(parents=True)
        for file in ("possible", "present"):
            (root / "graviton2" / "cpu" / file).write_text(CPU_LIST)
        (root / "graviton2" / "cpuinfo").write_text(CPUINFO.format(0) + CPUINFO.format(1))
        root.rename(ARM64)  # the last step, so that what exists is whole


PIP_INSTALL = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
PIP_INSTALL += ["--no-deps", "--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}"]
# pip takes a platform literally and not as "or older".
PIP_INSTALL += [f"--platform=manylinux{glibc}_aarch64" for glibc in ("_2_28", "_2_27", "_2_17", "2014")]


def download_debian_packages(workdir: Path) -> list[Path]:
    """With package lists of arm64 in `workdir`, so that the system's own stay as they are."""
    for folder in ("lists/partial", "cache/archives/partial", "packages"):
        (workdir / folder).mkdir(parents=True)
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root",
        "Dir::State::lists": workdir / "lists",
        "Dir::State::status": os.devnull,
        "Dir::Cache": workdir / "cache",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    run([*apt, "update"])
    run([*apt, "download", *DEBIAN_PACKAGES], cwd=workdir / "packages")
    return sorted((workdir / "packages").glob("*.deb"))


def run(arguments: list[str], cwd: Path | None = None) -> None:
    ran = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, check=False)  # noqa: S603
    if ran.returncode:
        raise PreparationError(f"{' '.join(arguments)} failed:\n{ran.stderr.strip()}")


if __name__ == "__main__":
    try:
        prepare()
    except PreparationError as error:
        sys.exit(f"portability: {error}")
