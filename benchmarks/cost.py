"""What a text, a billion tokens and a cold start cost, from the speed under each memory size's share of CPU.

Prices, with their sources, are in prices.json.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from artifact.manifest import open_artifact
from benchmarks import cycles, instructions
from benchmarks.cgroups import limited, unavailable
from benchmarks.corpus import mixed_length, of_length
from benchmarks.memory import function, url_event
from benchmarks.results import FOLDER, Figures, Result
from handler.embedder import LAMBDA_MB_PER_VCPU, Embedder

MEMORY_SIZES = (512, 1024, 1769, 3008)
"""MB of Lambda's memory sizes that are imitated."""

ARCHITECTURES: Mapping[str, str | None] = {"x86_64": None, "arm64": "neoverse-n1"}
"""Lambda's architecture -> the processor that is modelled for it (`cycles`); None for this machine's own."""
PROCESSORS: Mapping[str | None, str] = {None: "x86_64", "skylake": "x86_64", "neoverse-n1": "arm64"}
"""Processors whose costs are shown, this machine's (None) and some of `cycles` -> the architecture that is paid."""

INSTANCES: Mapping[str, tuple[str, str | None]] = {
    "c8a.large": ("Zen 5 with AVX-512 VNNI, as measured here", None),
    "c8g.large": ("Graviton4, modelled", "neoverse-v2"),
}
"""Machines paid by the hour -> title, and the processor that is modelled for them; None for this machine's own."""
INSTANCE_VCPUS = 2
ZEN_5 = {"avx512_vnni", "avx_vnni"}
"""Features that no AMD processor before Zen 5 has together."""

PUBLISHED: Mapping[str, str] = {
    "published_l4_billion_tokens": "published: gte-modernbert-base on an L4 GPU",
    "published_a10g_billion_tokens": "published: bge-small on 50 A10G GPUs",
}

SHORT_WORDS = 6
"""Words of the short text, one token each; the model adds two."""

SHORT_REQUESTS = 50

TEXTS_PER_REQUEST = 100

MONTH_MEMORY_MB = 1769
MONTH_REQUESTS = (100_000, 1_000_000, 10_000_000, 100_000_000)

_MONTH_SECONDS = 30 * 24 * 3600

PRICES: Mapping[str, float] = {
    name: entry["dollars"]
    for name, entry in json.loads(Path(__file__).with_name("prices.json").read_text("utf-8")).items()
}
"""Dollars by what they buy; prices.json has the units."""


def billed_dollars(seconds: float, memory_mb: int, gb_second: float) -> float:
    """Dollars for one invocation's duration.

    seconds, rounded up to 1 ms (AWS Lambda pricing, "Duration") x memory_mb / 1024 x dollars a GB-second.

    >>> billed_dollars(0.0011, 512, 0.00002)
    2e-08
    """
    milliseconds = math.ceil(round(seconds * 1000, 6))  # rounded, so that 0.003 s are not 3.0000000000000004 ms
    return milliseconds / 1000 * memory_mb / 1024 * gb_second


def dollars_per_million_requests(seconds: float, memory_mb: int, gb_second: float) -> float:
    """Dollars for a million invocations of `seconds` each: their durations and the price of requests."""
    return 1e6 * billed_dollars(seconds, memory_mb, gb_second) + PRICES["lambda_request_million"]


def dollars_per_billion_tokens(seconds: float, requests: int, tokens: int, memory_mb: int, gb_second: float) -> float:
    """Dollars for 1e9 tokens, if `requests` invocations that take `seconds` together embed `tokens`.

    Each is billed as one of seconds / requests: the rounding to whole milliseconds is that of the mean.
    """
    one = billed_dollars(seconds / requests, memory_mb, gb_second) + PRICES["lambda_request_million"] / 1e6
    return one * requests / tokens * 1e9


def provisioned_dollars_per_month(memory_mb: int, gb_second: float) -> float:
    """Dollars for one provisioned environment through a month of 30 days, before any request.

    memory_mb / 1024 x seconds x dollars a GB-second of provisioned concurrency.
    """
    return memory_mb / 1024 * _MONTH_SECONDS * gb_second


def dollars_per_month(requests: int, seconds: float, memory_mb: int, architecture: str, *, provisioned: bool) -> float:
    """Dollars for a month of 30 days in which `requests` invocations take `seconds` each.

    Provisioned, one environment is paid for all the time, and duration in it at a lower price.
    """
    kind = "provisioned_duration_" if provisioned else ""
    million = dollars_per_million_requests(seconds, memory_mb, PRICES[f"lambda_{architecture}_{kind}gb_second"])
    dollars = requests / 1e6 * million
    if provisioned:
        dollars += provisioned_dollars_per_month(memory_mb, PRICES[f"lambda_{architecture}_provisioned_gb_second"])
    return dollars


def snapstart_dollars_per_month(memory_mb: int) -> float:
    """Dollars for the snapshot of one version through a month of 30 days, before any request."""
    return memory_mb / 1024 * _MONTH_SECONDS * PRICES["lambda_snapstart_cache_gb_second"]


def snapstart_restore_dollars(memory_mb: int) -> float:
    """Dollars for one environment started from a snapshot, beside the time that it takes."""
    return memory_mb / 1024 * PRICES["lambda_snapstart_restore_gb"]


def efs_dollars(size: int) -> float:
    """Dollars for reading `size` bytes once from a file system with elastic throughput; a GB is 2**30 bytes."""
    return size / 2**30 * PRICES["efs_elastic_read_gb"]


def run(model_folder: Path, texts: int, rounds: int, advance: Callable[[], None]) -> Result:
    """Start the function once a round under the limits of each memory size, in turns; it answers over a Function URL.

    The CPU quota holds from the start on, while Lambda gives the init phase a full CPU. The page cache is warm.
    `advance` is called rounds x len(MEMORY_SIZES) times. Where limits cannot be set, there are no rows, and the
    reason is in the parameters.
    """
    corpus = mixed_length(texts, None)
    lengths = Embedder.load(model_folder).embed(corpus.texts).tokens
    tokens = sum(lengths)
    bodies = [
        json.dumps({"texts": list(corpus.texts[begin : begin + TEXTS_PER_REQUEST])})
        for begin in range(0, len(corpus.texts), TEXTS_PER_REQUEST)
    ]
    parameters = {
        "corpus": corpus.name,
        "texts": len(corpus.texts),
        "tokens": tokens,
        "requests": len(bodies),
        "rounds": rounds,
        "short_tokens": SHORT_WORDS + 2,
        "read_bytes": _read_bytes(model_folder),
        "modelled_seconds": _modelled(model_folder, {"short": [SHORT_WORDS + 2], "corpus": lengths}),
    }
    if reason := unavailable():
        print(f"cost not measured: {reason}", file=sys.stderr)
        for _ in range(rounds * len(MEMORY_SIZES)):
            advance()
        return Result.new("cost", model_folder, parameters | {"unavailable": reason}, [])
    rows = [_row(memory_mb) for memory_mb in MEMORY_SIZES]
    _measure(model_folder, _row(max(MEMORY_SIZES)), bodies[:1])  # not counted: it fills the page cache
    for _ in range(rounds):
        for row in rows:
            _measure(model_folder, row, bodies)
            advance()
    return Result.new("cost", model_folder, parameters, rows)


def figures(result: Result) -> list[Figures]:
    """One row for each memory size and architecture, and OpenAI's prices; then one for each load of a month."""
    if "unavailable" in result.parameters:
        return [Figures(f"Cost: not measured, {result.parameters['unavailable']}", [""], [])]
    found = [_sizes(result), _months(result)]
    if "instructions" not in result.parameters and (hours := _hours(result)).rows:
        found.append(hours)
    return found


def seconds(result: Result, row: Mapping[str, Any], what: str, cpu: str | None = None) -> float | None:
    """Of the "short" text or of the "corpus", median, at the memory size of `row`.

    With `cpu`, what the model takes is scaled by what that processor is modelled to take, relative to what was measured
    in one vCPU; all else takes as long as here. None if it was not modelled.
    """
    measured: float = statistics.median(row[f"{what}_seconds"])
    if cpu is None:
        return measured
    modelled: Mapping[str, float] | None = result.parameters.get("modelled_seconds", {}).get(cpu)
    if modelled is None:
        return None
    inside: float = statistics.median(row[f"{what}_run_seconds"])
    whole: float = statistics.median(_one_vcpu(result)[f"{what}_run_seconds"])
    return measured + inside * (modelled[what] / whole - 1)


def _one_vcpu(result: Result) -> Mapping[str, Any]:
    return next(row for row in result.rows if row["memory_mb"] == LAMBDA_MB_PER_VCPU)


def _modelled(model_folder: Path, tokens: Mapping[str, Sequence[int]]) -> dict[str, dict[str, float]]:
    """Seconds by processor and by what is embedded, from the stored cycles if they are of this artifact."""
    path = FOLDER / "cycles.json"
    if not path.exists():
        return {}
    result = Result.read(path)
    if result.parameters["version"] != open_artifact(model_folder).manifest.version:
        print(
            f"{path} is of another artifact, so no processor is modelled: python -m benchmarks cycles", file=sys.stderr
        )
        return {}
    return {
        cpu: {what: cycles.modelled_seconds(result, cpu, lengths) for what, lengths in tokens.items()}
        for cpu in cycles.PROCESSORS
    }


def _months(result: Result) -> Figures:
    row, suffix = _one_vcpu(result), instructions.suffix(result)
    short = {name: seconds(result, row, "short", cpu) for name, cpu in ARCHITECTURES.items()}
    known = {name: each for name, each in short.items() if each is not None}
    return Figures(
        f"Lambda's price of a month in dollars at {MONTH_MEMORY_MB} MB, requests of one short text each, with and "
        "without provisioned concurrency of one environment, which is taken to answer all of them, one after the other"
        f"{suffix}; arm64 is modelled",
        ["requests a month", *(f"{name}, {kind}" for name in known for kind in ("on demand", "provisioned"))],
        [
            [
                f"{requests:,}",
                *(
                    f"{dollars_per_month(requests, each, MONTH_MEMORY_MB, name, provisioned=kind):,.2f}"
                    for name, each in known.items()
                    for kind in (False, True)
                ),
            ]
            for requests in MONTH_REQUESTS
        ],
    )


def _hours(result: Result) -> Figures:
    tokens, requests = result.parameters["tokens"], result.parameters["requests"]
    rows = []
    for name, (title, cpu) in INSTANCES.items():
        machine = result.machine
        if cpu is None and not (machine["cpu"].startswith("AMD") and set(machine["cpu_features"]) >= ZEN_5):
            continue
        if (taken := seconds(result, _one_vcpu(result), "corpus", cpu)) is None:
            continue
        hour = PRICES[f"ec2_{name.replace('.', '_')}_hour"]
        bulk = hour / 3600 * taken / INSTANCE_VCPUS / tokens * 1e9
        managed = bulk * (1 + PRICES["lambda_managed_instances_fee"])
        managed += PRICES["lambda_request_million"] / 1e6 * requests / tokens * 1e9
        rate = INSTANCE_VCPUS * tokens / taken
        rows.append([f"{name}: {title}", f"{hour:.4f}", f"{rate:,.0f}", f"{bulk:.2f}", f"{managed:.2f}"])
    if rows:
        rows += [[title, "", "", f"{PRICES[name]:.2f}", ""] for name, title in PUBLISHED.items()]
    return Figures(
        "Cost in dollars, us-east-1, on machines that are paid by the hour and kept busy, with a process for each "
        "vCPU, and two published costs on GPUs, of models that compute more per token (benchmarks/prices.json has the "
        "sources)",
        ["", "$/hour", "tokens/s", "$/billion tokens, EC2 on demand", "$/billion tokens, Lambda Managed Instances"],
        rows,
    )


def _sizes(result: Result) -> Figures:
    return Figures(
        "Cost in dollars, us-east-1, from speeds under a CPU quota of MB / 1,769 on this machine's x86_64 CPU. Rows "
        "with a processor's name are modelled: its cycles at its clock, all else takes as long as here. One short text "
        f"({result.parameters['short_tokens']} tokens) per request; tokens in requests of {TEXTS_PER_REQUEST} texts of "
        "mixed length; cold starts under the quota throughout, which Lambda lifts during init"
        f"{instructions.suffix(result)}",
        [
            "",
            "vCPUs",
            "short text, ms",
            "$/million short texts",
            "tokens/s",
            "$/billion tokens",
            "cold start, ms",
            "$/million cold starts",
            "same, model from EFS",
            "$/million SnapStart restores",
            "SnapStart, $/month a version",
            "provisioned, $/month",
        ],
        [
            *(
                cells
                for row in result.rows
                for cpu, architecture in PROCESSORS.items()
                if (cells := _cells(result, row, architecture, cpu))
            ),
            _openai_cells("text-embedding-3-small", "small"),
            _openai_cells("text-embedding-3-small, batch", "small_batch"),
            _openai_cells("text-embedding-3-large", "large"),
        ],
    )


def _row(memory_mb: int) -> dict[str, Any]:
    vcpus = memory_mb / LAMBDA_MB_PER_VCPU
    given = min(vcpus, float(os.cpu_count() or 1))
    names = ("cold_start", "short", "short_run", "corpus", "corpus_run")
    return {"memory_mb": memory_mb, "vcpus": vcpus, "vcpus_given": given, **{f"{name}_seconds": [] for name in names}}


def _measure(model_folder: Path, row: Mapping[str, Any], bodies: list[str]) -> None:
    """Append one process's samples to the row's lists."""
    short = url_event(json.dumps({"text": of_length(SHORT_WORDS)}))
    with limited(row["memory_mb"], row["vcpus_given"]) as limits:
        started = time.perf_counter()
        with function(model_folder, row["memory_mb"], limits) as process:
            process.call(short).check_vectors()
            row["cold_start_seconds"].append(time.perf_counter() - started)
            shorts = [process.call(short) for _ in range(SHORT_REQUESTS)]
            answers = [process.call(url_event(body)) for body in bodies]
    for answer in answers:
        answer.check_vectors()
    row["short_seconds"].extend(answer.seconds for answer in shorts)
    row["short_run_seconds"].extend(answer.run_seconds for answer in shorts)
    row["corpus_seconds"].append(sum(answer.seconds for answer in answers))
    row["corpus_run_seconds"].append(sum(answer.run_seconds for answer in answers))


def _read_bytes(model_folder: Path) -> int:
    """Bytes that a cold start of the INT8 model reads: tokenizer, ONNX file and weights."""
    artifact = open_artifact(model_folder)
    return sum(artifact.manifest.files[name].size for name in artifact.files_of("int8"))


def _cells(result: Result, row: Mapping[str, Any], architecture: str, cpu: str | None) -> list[str] | None:
    """None if the processor was not modelled."""
    memory_mb, gb_second = row["memory_mb"], PRICES[f"lambda_{architecture}_gb_second"]
    short, corpus = (seconds(result, row, what, cpu) for what in ("short", "corpus"))
    if short is None or corpus is None:
        return None
    tokens, requests = result.parameters["tokens"], result.parameters["requests"]
    bulk = dollars_per_billion_tokens(corpus, requests, tokens, memory_mb, gb_second)
    month = provisioned_dollars_per_month(memory_mb, PRICES[f"lambda_{architecture}_provisioned_gb_second"])
    fewer = " (of this machine, Lambda has more)" if row["vcpus_given"] < row["vcpus"] else ""
    starts = ["", "", "", "", ""]
    if cpu is None:
        cold = statistics.median(row["cold_start_seconds"])
        start = billed_dollars(cold, memory_mb, gb_second)
        from_efs = (start + efs_dollars(result.parameters["read_bytes"])) * 1e6
        starts = [f"{cold * 1000:,.0f}", f"{start * 1e6:.2f}", f"{from_efs:.0f}"]
        starts += [f"{snapstart_restore_dollars(memory_mb) * 1e6:.0f}", f"{snapstart_dollars_per_month(memory_mb):.2f}"]
    return [
        f"{memory_mb} MB {architecture}{f', {cycles.PROCESSORS[cpu].title}' if cpu else ''}",
        f"{row['vcpus_given']:.2f}{fewer}",
        f"{short * 1000:.1f}",
        f"{dollars_per_million_requests(short, memory_mb, gb_second):.3f}",
        f"{tokens / corpus:,.0f}",
        f"{bulk:.2f}",
        *starts,
        f"{month:.2f}",
    ]


def _openai_cells(title: str, name: str) -> list[str]:
    """A short text has SHORT_WORDS tokens there, all of them common words."""
    million = PRICES[f"openai_text_embedding_3_{name}_million"]
    return [f"OpenAI {title}", "", "", f"{million * SHORT_WORDS:.3f}", "", f"{million * 1000:.2f}", *6 * [""]]
