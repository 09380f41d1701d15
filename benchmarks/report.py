"""docs/benchmarks.md: every table and plot of the stored results, and how each was measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from benchmarks import ablation, cold_start, cost, cycles, latency, load, memory, quality, throughput
from benchmarks.instructions import TITLES
from benchmarks.results import FOLDER, Figures, Result, tables

DOCS = Path(__file__).parents[1] / "docs"
DOCUMENT, PLOTS = "benchmarks.md", "benchmarks"
COMMENT = "<!-- Written by python -m benchmarks report from benchmarks/results/. Do not edit. -->"

Results: TypeAlias = Mapping[str, Result]
"""Benchmark, and, if it was limited to some instructions, their name (`throughput-avx2`) -> its result."""


@dataclass(frozen=True)
class Section:
    """What the document says about one benchmark."""

    title: str
    text: str
    figures: Callable[[Result], Figures | list[Figures]]
    plot: str = ""
    """What its plot shows; empty without one. Its function in `plots` has the section's name, with underscores."""
    plottable: Callable[[Results], bool] = lambda results: True
    """Whether the results have what the plot needs."""


SECTIONS: Mapping[str, Section] = {
    "cold-start": Section(
        "Cold start",
        "In each round every contender in turn starts in a fresh process, which is timed until it has embedded one "
        "short text. As a function, the deployable package runs under AWS's runtime client and answers one invocation, "
        "on Lambda's version of Python where the machine has it. Its phases are timed in a second process that takes "
        "the same steps; 'request and answer' in the plot is the rest of the first one's time. The floor is `import "
        "numpy, onnxruntime` alone, as pip installs them; the package's numpy has only the parts that it uses.",
        cold_start.figures,
        "Time from the start of a process to its first vector, by phase",
    ),
    "latency": Section(
        "Latency",
        "One text per call, in a process that has been warmed up; the contenders take turns.",
        latency.figures,
    ),
    "throughput": Section(
        "Throughput",
        "Tokens embedded per second, padding not counted; each contender has a process of its own, and they take "
        "turns. Every contender's vectors are compared with sentence-transformers' before its time counts. The limit "
        "is the rate at which one core multiplies INT8 matrices of the model's shapes, with onnxruntime's operator or "
        "ours, whichever is faster, divided by the multiply-accumulates that a token needs; to reach it, attention and "
        "all else would have to take no time. "
        "By default OpenVINO computes what is not INT8 in bfloat16 where the CPU has it. "
        "fastembed does not sort texts by length and pads each batch to its longest. Percentages of the limit and "
        "ratios of contenders hold for CPUs with AVX-512 VNNI.",
        throughput.figures,
        "Tokens per second over the length of texts, for several batch sizes",
        lambda results: any("batch" in row for row in results["throughput"].rows),
    ),
    "cycles": Section(
        "Cycles on Lambda's processors",
        "Modelled, not measured: QEMU counts how often each block of the operators' instructions runs, and LLVM's "
        "model of the processor says how many cycles a block takes. It assumes that all data is in the L1 cache and "
        "that no branch is mispredicted; Python, tokenizer and onnxruntime do not count. Ratios of two versions of the "
        "code are more reliable than the cycles.",
        cycles.figures,
    ),
    "quality": Section(
        "Quality",
        "Each contender embeds the same texts, and each of its vectors is compared with sentence-transformers' of the "
        "same text. The words of the vocabulary, alone and repeated, are embedded only by this project's INT8 and "
        "compared with its float32. In the plot, float32 contenders are at the lower end of the axis: they differ only "
        "by rounding.",
        quality.figures,
        "Distance from float32 vectors against tokens per second",
        lambda results: "throughput" in results,
    ),
    "ablation": Section(
        "Ablation of the INT8 recipe",
        "The model is quantized again with one part of the recipe changed, and compared with float32.",
        ablation.figures,
    ),
    "memory": Section(
        "Memory",
        "The function's process gets its largest possible requests, then a long run of mixed ones; the smallest "
        "sufficient memory size is found by limits that the kernel enforces.",
        memory.figures,
    ),
    "cost": Section(
        "Cost",
        "The function runs under the CPU quota and the memory limit of each memory size. Dollars are the measured "
        "seconds times the published prices in `benchmarks/prices.json`, without free tiers. Lambda's x86_64 "
        "processors report AVX2 and 2.5 GHz, less than this machine's clock. So plan with the modelled rows, which "
        "promise less than the measured ones. By them a token costs less on x86_64 than on arm64, because Graviton2 is "
        "slower by more than it is cheaper, and a short text costs about the same on both: choose x86_64 for many "
        "tokens, and either for single short texts. Neither was measured on AWS. A function's first log line and "
        "`GET /info` say which instructions it really uses.",
        cost.figures,
        "Dollars by memory size, with OpenAI's price",
        lambda results: bool(results["cost"].rows),
    ),
    "load": Section(
        "Load",
        "Requests of all kinds, the same in each run, are sent over kept-alive connections to one environment behind "
        "`python -m local`, the runtime client's process included. The status and every field of each answer are "
        "compared with what is expected, vectors to the bit with the library's. Each answer must have a request id of "
        "its own, and the function's log must have exactly those ids, each once. An environment handles one request at "
        "a time, so a client mostly waits for the requests before its own; Lambda would start more environments "
        "instead. The client shares the CPUs with what it measures, which lowers the requests/s. "
        "Percentiles are read from histograms with steps of 2 %.",
        load.figures,
        "Percentiles of latency by kind of request, and memory over the run",
        lambda results: any(row.get("rss_mb") for row in results["load"].rows),
    ),
}


RESTRICTED = ("cold-start", "latency", "throughput", "cost")
"""The benchmarks that can be limited to fewer instructions than the CPU has."""


def file_name(name: str, instructions: str | None) -> str:
    """Name of a result's file, without its ending."""
    return f"{name}-{instructions}" if instructions else name


def write(folder: Path = DOCS) -> list[str]:
    """Write document and plots of the stored results into `folder`; returns a line on each result that is missing."""
    from benchmarks import plots  # it needs matplotlib, which the document does not

    results = stored()
    for name in plotted(results):
        plots.save(getattr(plots, name.replace("-", "_"))(results), folder / PLOTS / f"{name}.svg")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DOCUMENT).write_text(document(results), "utf-8")
    return [
        f"benchmarks/results/{name}.json is missing and its section left out, make it with: python -m benchmarks {name}"
        for name in SECTIONS
        if name not in results
    ]


def stored(folder: Path = FOLDER) -> Results:
    """The results that are there."""
    names = [file_name(name, each) for name in SECTIONS for each in (None, *(TITLES if name in RESTRICTED else ()))]
    paths = {name: folder / f"{name}.json" for name in names}
    return {name: Result.read(path) for name, path in paths.items() if path.exists()}


def plotted(results: Results) -> list[str]:
    """The benchmarks whose plot the results can fill."""
    return [name for name in results if name in SECTIONS and SECTIONS[name].plot and SECTIONS[name].plottable(results)]


def document(results: Results) -> str:
    """The whole Markdown text; it refers to plots in the folder `benchmarks` beside it."""
    parts = ["# Benchmarks", COMMENT, *_conditions(results)]
    plots = plotted(results)
    for name, section in SECTIONS.items():
        if name not in results:
            continue
        parts += [f"## {section.title}", section.text]
        if name in plots:
            parts.append(f"![{section.plot}]({PLOTS}/{name}.svg)")
        for each in (None, *TITLES):
            if (variant := file_name(name, each)) in results:
                for table in tables(section.figures(results[variant])):
                    parts += [f"**{table.title}**", table.markdown()]
    return "\n\n".join([*parts, *_HOW_TO]) + "\n"


_HOW_TO: Sequence[str] = (
    "## Measure it yourself",
    "```sh\n"
    "make benchmarks                  # all but the ablation, then the report\n"
    "python -m benchmarks NAME        # one of: " + ", ".join(SECTIONS) + "\n"
    "python -m benchmarks report      # this document and the README's figures, from the results that are there\n"
    "```",
    "`python -m benchmarks --help` lists the options, among them `--corpus FILE` for your own texts.",
    "## Noise",
    "Tables and plots show medians. The raw samples are in `benchmarks/results/`, and a run warns where they scatter. "
    "On a shared machine absolute times change from run to run; contenders are measured in turns within one run, so "
    "compare figures of one table as ratios, and not figures of different runs.",
)


def _conditions(results: Results) -> list[str]:
    """Machines and versions; date and artifact of each result."""
    by_machine: dict[str, list[str]] = {}
    for name, result in results.items():
        by_machine.setdefault(json.dumps(result.machine, sort_keys=True), []).append(name)
    parts = ["## Measured on"]
    for names in by_machine.values():
        machine = results[names[0]].machine
        packages = ", ".join(f"{package} {version}" for package, version in machine["packages"].items())
        scope = f"{', '.join(names)}: " if len(by_machine) > 1 else ""
        parts.append(
            f"{scope}{machine['cpus']} CPUs of type {machine['cpu']} ({', '.join(machine['cpu_features'])}), "
            f"{machine['memory_gb']} GB of memory, {machine['system']}, Python {machine['python']}, {packages}."
        )
    rows = [[name, result.created, f"`{result.manifest_sha256[:16]}`"] for name, result in results.items()]
    parts.append(Figures("", ["result", "measured", "SHA-256 of the artifact's manifest"], rows).markdown())
    return parts
