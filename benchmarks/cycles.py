"""Cycles a token of the INT8 operators on processors that are not here: modelled, not measured.

The model is run under QEMU with a plugin that counts how often each block of instructions runs, and LLVM's model of the
processor (llvm-mca) says how many cycles a block takes. So a block counts as if it ran again and again, with all that
it reads in the first cache and no branch mispredicted, and Python, tokenizer and onnxruntime do not count at all.
"""

from __future__ import annotations

import bisect
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from artifact.manifest import open_artifact
from benchmarks import emulation
from benchmarks.latency import LENGTHS
from benchmarks.results import Figures, Result
from kernels.__main__ import compile_operators

LLVM = 19
"""Version of llvm-mca from which on its Neoverse N1 is that processor's own: before, SDOT ran once a cycle and not
twice (Arm's Software Optimization Guide)."""
TOOLS = ("llvm-mc", "llvm-mca", "llvm-nm", "llvm-readelf")


class Processor(NamedTuple):
    """What is modelled."""

    title: str
    emulated: str
    """On which of `emulation.CPUS` the blocks are counted."""
    machine: str
    triple: str
    features: str
    gigahertz: float
    source: str
    """Of the clock."""


PROCESSORS: Mapping[str, Processor] = {
    "neoverse-n1": Processor(
        "Neoverse N1 (Graviton2, Lambda's arm64)",
        "graviton2",
        "aarch64",
        "aarch64",
        "+v8.2a,+dotprod",
        2.5,
        "https://aws.amazon.com/ec2/instance-types/m6g/",
    ),
    "neoverse-v2": Processor(
        "Neoverse V2 (Graviton4)",
        "graviton2",
        "aarch64",
        "aarch64",
        "+v8.2a,+dotprod",
        2.8,
        "https://aws.amazon.com/ec2/instance-types/c8g/",
    ),
    "skylake": Processor(
        "Skylake (AVX2)",
        "haswell",
        "x86_64",
        "x86_64",
        "+avx2,+fma",
        2.5,
        "the name that Lambda's x86_64 processors give themselves, Intel(R) Xeon(R) Processor @ 2.50GHz",
    ),
    "znver3": Processor(
        "Zen 3 (AVX2)",
        "haswell",
        "x86_64",
        "x86_64",
        "+avx2,+fma",
        2.5,
        "the same, for comparison",
    ),
}
"""By LLVM's names."""

PARTS = {
    "multiply_columns": "products",
    "attend": "attention",
    "linear_gelu_quantize": "Gelu and codes",
    "linear_add_normalize": "residual, normalization and codes",
    "embed": "embedding and codes",
}
"""By the function that does them. What else there is counts as the rest."""
REST = "rest"

PROGRAM = """
import sys
import kernels
kernels.LIBRARY, model, tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
kernels.register(options)
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
session.run(None, {"input_ids": numpy.random.default_rng(0).integers(1000, 20000, (1, tokens))})
print("".join(line for line in open("/proc/self/maps") if kernels.LIBRARY in line and " r-xp " in line))
"""


class CyclesError(Exception):
    """Nothing can be modelled here; the message says what is missing."""


class Block(NamedTuple):
    """A block of instructions that ran."""

    address: int
    """As the library has it."""
    times: int
    instructions: list[bytes]


def run(model_folder: Path, advance: Callable[[], None], lengths: Sequence[int] = LENGTHS) -> Result:
    """Model a run of one text of each of `lengths` on each of PROCESSORS. `advance` is called `steps` times.

    Raises CyclesError.
    """
    if reason := unavailable():
        raise CyclesError(reason)
    model = Path(open_artifact(model_folder).model("int8")).resolve()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        workdir = Path(name)
        plugin = _compile_plugin(workdir)
        for emulated, machine in {(each.emulated, each.machine) for each in PROCESSORS.values()}:
            operators = compile_operators("linux", machine, workdir / f"{machine}.so", symbols=True)
            functions = _functions(operators)
            for tokens in lengths:
                blocks = _blocks(emulated, plugin, operators, model, tokens)
                for cpu, processor in PROCESSORS.items():
                    if processor.emulated == emulated:
                        rows += _rows(cpu, tokens, blocks, functions)
                        advance()
    clocks = {cpu: {"gigahertz": each.gigahertz, "source": each.source} for cpu, each in PROCESSORS.items()}
    parameters = {"llvm": LLVM, "version": open_artifact(model_folder).manifest.version, "clocks": clocks}
    return Result.new("cycles", model_folder, parameters, rows)


def modelled_seconds(result: Result, cpu: str, tokens: Sequence[int]) -> float:
    """What the operators take for texts of that many tokens, in one thread; interpolated between lengths."""
    cycles = Counter[int]()
    for row in result.rows:
        if row["cpu"] == cpu:
            cycles[row["tokens"]] += row["cycles"]
    lengths = sorted(cycles)
    a_token = np.interp(tokens, lengths, [cycles[each] / each for each in lengths])
    gigahertz: float = result.parameters["clocks"][cpu]["gigahertz"]
    return float((a_token * np.array(tokens)).sum()) / (gigahertz * 1e9)


def steps(lengths: Sequence[int] = LENGTHS) -> int:
    """How often `run` calls `advance`."""
    return len(PROCESSORS) * len(lengths)


def unavailable() -> str | None:
    """What this machine lacks to model the processors; None if nothing."""
    for tool in TOOLS:
        if not shutil.which(f"{tool}-{LLVM}"):
            return f"{tool}-{LLVM} is not on PATH: apt-get install llvm-{LLVM}"
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "x86_64's blocks can be counted on Linux x86_64 alone"
    return next(filter(None, (emulation.missing(each.emulated) for each in PROCESSORS.values())), None)


def figures(result: Result) -> list[Figures]:
    """A table for each processor: cycles a token by part, and tokens a second at its clock."""
    found = []
    for cpu, processor in PROCESSORS.items():
        cycles = {
            (row["part"], row["tokens"]): row["cycles"] / row["tokens"] for row in result.rows if row["cpu"] == cpu
        }
        lengths = sorted({tokens for _, tokens in cycles})
        totals = [sum(cycles[part, tokens] for part in (*PARTS.values(), REST)) for tokens in lengths]
        clock = result.parameters["clocks"][cpu]["gigahertz"]
        found.append(
            Figures(
                f"Model, not measured: cycles a token of the operators on {processor.title}, one text",
                ["", *(f"{tokens} tokens" for tokens in lengths)],
                [
                    *(
                        [part, *(f"{cycles[part, tokens]:,.0f}" for tokens in lengths)]
                        for part in (*PARTS.values(), REST)
                    ),
                    ["all", *(f"{total:,.0f}" for total in totals)],
                    [f"tokens/s at {clock} GHz", *(f"{clock * 1e9 / total:,.0f}" for total in totals)],
                ],
            )
        )
    return found


def _compile_plugin(workdir: Path) -> Path:
    plugin, source = workdir / "block_counts.so", Path(__file__).with_name("block_counts.c")
    _output([sys.executable, "-m", "ziglang", "cc", "-O2", "-shared", "-fPIC", "-o", str(plugin), str(source)])
    return plugin


def _functions(operators: Path) -> list[tuple[int, str]]:
    """Start and name of each function, in order."""
    lines = _output([f"llvm-nm-{LLVM}", "--numeric-sort", "--defined-only", str(operators)]).splitlines()
    return [(int(address, 16), name) for address, kind, name in map(str.split, lines) if kind in "tT"]


def _blocks(emulated: str, plugin: Path, operators: Path, model: Path, tokens: int) -> list[Block]:
    """The operators' blocks that ran."""
    target = plugin.with_name("blocks.txt")
    arguments = ["-c", PROGRAM, str(operators), str(model), str(tokens)]
    command, environment = emulation.command(emulated, arguments, "-plugin", f"{plugin},target={target}")
    (mapped,) = _output(command, environment).split("\n\n")[0].splitlines()
    span, _, offset, *_ = mapped.split()
    start, end = (int(each, 16) for each in span.split("-"))
    segments = _output([f"llvm-readelf-{LLVM}", "--program-headers", "--wide", str(operators)]).splitlines()
    code = next(line.split() for line in segments if line.split()[:1] == ["LOAD"] and " R E " in line)
    to_library = int(code[2], 16) - int(code[1], 16) + int(offset, 16) - start
    found = []
    with target.open() as file:
        for line in file:
            address, times, *instructions = line.split()
            if start <= int(address, 16) < end:
                found.append(Block(int(address, 16) + to_library, int(times), list(map(bytes.fromhex, instructions))))
    return found


def _rows(cpu: str, tokens: int, blocks: Sequence[Block], functions: Sequence[tuple[int, str]]) -> list[dict[str, Any]]:
    cycles: dict[str, float] = dict.fromkeys((*PARTS.values(), REST), 0.0)
    instructions = Counter[str]()
    starts = [start for start, _ in functions]
    for block, each in zip(blocks, _cycles(cpu, blocks), strict=True):
        part = PARTS.get(functions[bisect.bisect(starts, block.address) - 1][1], REST)
        cycles[part] += block.times * each
        instructions[part] += block.times * len(block.instructions)
    return [
        {"cpu": cpu, "tokens": tokens, "part": part, "cycles": cycles[part], "instructions": instructions[part]}
        for part in cycles
    ]


def _cycles(cpu: str, blocks: Sequence[Block]) -> list[float]:
    """Of each block, by what it takes of the processor's ports and of its width ("block reciprocal throughput")."""
    processor = PROCESSORS[cpu]
    target = [f"-triple={processor.triple}", f"-mattr={processor.features}"]
    code = "\n".join(" ".join(f"{byte:#04x}" for byte in each) for block in blocks for each in block.instructions)
    text = _output([f"llvm-mc-{LLVM}", "--disassemble", *target], given=code)
    lines = iter([line for line in text.splitlines() if line.strip() and not line.strip().startswith((".", "#"))])
    regions = [["# LLVM-MCA-BEGIN", *(next(lines) for _ in block.instructions), "# LLVM-MCA-END"] for block in blocks]
    command = [f"llvm-mca-{LLVM}", f"-m{target[0][1:]}", target[1], f"-mcpu={cpu}", "--json", "--iterations=1"]
    found = json.loads(_output(command, given="\n".join(line for region in regions for line in region)))
    return [region["SummaryView"]["BlockRThroughput"] for region in found["CodeRegions"]]


def _output(command: Sequence[str], environment: Mapping[str, str] | None = None, given: str = "") -> str:
    ran = subprocess.run(  # noqa: S603
        command, env=environment, input=given, capture_output=True, text=True, check=False
    )
    if ran.returncode:
        raise CyclesError(f"{command[0]} failed: {ran.stderr.strip()[-500:]}")
    return ran.stdout
