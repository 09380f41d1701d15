"""The plots of docs/benchmarks.md, as SVG that reads on a white and on a dark page. Needs matplotlib."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import NullFormatter
from matplotlib.transforms import Bbox

from benchmarks.contenders import CONTENDERS, REFERENCE
from benchmarks.cost import (
    ARCHITECTURES,
    PRICES,
    SHORT_WORDS,
    TEXTS_PER_REQUEST,
    dollars_per_billion_tokens,
    dollars_per_million_requests,
    seconds,
)
from benchmarks.load import SHARES, percentile, quarters
from benchmarks.results import Result

Results: TypeAlias = Mapping[str, Result]
"""By benchmark."""

GREY = "#808890"
"""Colour of axes and text: contrast over 3.5 to white and to GitHub's dark page, #0d1117."""
COLOURS = {
    "torch": "#b07aa1",
    "torch_int8": "#d3628a",
    "st_onnx": "#8c7ae6",
    "fastembed": "#499894",
    "fp32": "#3b8eea",
    "dynamic_tensor": "#a08a2e",
    "dynamic_channel": "#5a9e3d",
    "openvino_int8": "#b5793c",
    "openvino_genai": "#d0822f",
    "ctranslate2": "#6f83c9",
    "int8": "#f0562d",
    "floor": GREY,
}
MARKERS = dict(zip(COLOURS, "osD^vP*Xhdoo", strict=True))
PHASE_COLOURS = ("#8c7ae6", "#3b8eea", "#499894", "#5a9e3d", "#c29a1f", "#f0562d", "#b07aa1")
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: a third of the size, and readable without a viewer
    "svg.hashsalt": "benchmarks",  # otherwise every run names its clip paths anew
    "font.size": 9,
    "axes.titlesize": 10,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
_styled = mpl.rc_context(STYLE)  # type: ignore[arg-type]  # it wants literal names
FILES = {"page cache": "page cache", "disk": "disk", "slow file system": "EFS-like file system"}
EXACT = 1e-6
"""1 - mean cosine below which float32's own rounding is all there is."""


@_styled
def cold_start(results: Results) -> Figure:
    """A bar a start; INT8's function by phase. The reference takes so long that its bar leaves the axis."""
    rows = sorted(results["cold-start"].rows, key=_order)
    figure = Figure((7.5, 1.4 + 0.36 * len(rows)))
    axes = figure.subplots()
    limit = 1.18 * max(_end(row) for row in rows if row["contender"] != REFERENCE)
    phases = list(dict.fromkeys(name for row in rows for name in row.get("phases", {})))
    colours = dict(zip(phases, PHASE_COLOURS, strict=False))
    for height, row in enumerate(rows):
        start = 0.0
        for name, samples in row.get("phases", {}).items():
            width = statistics.median(samples) * 1000
            axes.barh(height, width, 0.62, start, color=colours[name])
            start += width
        whole = _median(row) * 1000
        if row.get("phases"):
            axes.barh(height, max(0, whole - start), 0.62, start, color=GREY, alpha=0.4)
        else:
            axes.barh(height, min(whole, limit), 0.62, color=COLOURS[row["contender"]])
        if whole > limit:
            label, place, side, colour = f"{whole:,.0f} ms: beyond this axis →", limit * 0.99, "right", "white"
        else:
            label, place, side, colour = f"{whole:,.0f} ms", max(start, whole) + limit * 0.01, "left", GREY
        axes.text(place, height, label, ha=side, va="center", color=colour)
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows])
    axes.set(xlim=(0, limit), ylim=(len(rows) - 0.5, -0.5), xlabel="ms from the start of the process, median")
    axes.grid(visible=False, axis="y")
    if phases:
        handles = [Patch(color=colours[name], label=name) for name in phases]
        handles.append(Patch(color=GREY, alpha=0.4, label="request and answer"))
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), handlelength=1, columnspacing=1)
    return figure


@_styled
def throughput(results: Results) -> Figure:
    """Tokens per second over length, a panel a batch size; the machine's INT8 limit as a line."""
    result = results["throughput"]
    rows = [row for row in result.rows if "batch" in row]
    batches, lengths = (sorted({row[key] for row in rows}) for key in ("batch", "tokens"))
    rates = {
        (row["contender"], row["batch"], row["tokens"]): row["batch"] * row["tokens"] / _median(row) for row in rows
    }
    figure = Figure((9.0, 4.4))
    panels = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    names = [name for name in CONTENDERS if any(row["contender"] == name for row in rows)]
    for panel, batch in zip(panels, batches, strict=True):
        for name in names:
            shown = [length for length in lengths if (name, batch, length) in rates]
            values = [rates[name, batch, length] for length in shown]
            panel.plot(shown, values, label=CONTENDERS[name].title, **_line(name))
        if limit := _int8_limit(result):
            panel.axhline(limit, color=GREY, linestyle="--", linewidth=1.2, label="limit of the INT8 products")
        panel.set_xscale("log", base=2)
        panel.set_xticks(lengths, [str(length) for length in lengths])
        panel.set(title=f"{batch} text{'s' if batch > 1 else ''} a call", xlabel="tokens of a text")
    panels[0].set_ylabel("tokens/s, 1 thread")
    panels[0].set_ylim(bottom=0)
    panels[0].yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


@_styled
def quality(results: Results) -> Figure:
    """Distance to the reference's vectors against tokens per second, a labelled point a contender."""
    chosen = quality_set(results["quality"])
    distances = {row["contender"]: 1 - row["mean_cosine"] for row in results["quality"].rows if row["set"] == chosen}
    speeds = corpus_rates(results["throughput"])
    figure = Figure((7.5, 4.4))
    axes = figure.subplots()
    names = [name for name in CONTENDERS if name in distances and name in speeds]
    places = {name: (speeds[name], max(distances[name], EXACT)) for name in names}
    for name, place in places.items():
        axes.plot(*place, **_line(name), clip_on=False, zorder=3)
    axes.set_yscale("log")
    axes.set(xlim=(0, 1.15 * max(speeds.values())), ylim=(EXACT / 2, 0.2))
    axes.set(xlabel="tokens/s on texts of mixed length, 1 thread", ylabel=f"1 - mean cosine, {chosen}")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_title("better: to the right and down", loc="right", style="italic", fontsize=9)
    _label_points(axes, places)
    return figure


@_styled
def cost(results: Results) -> Figure:
    """Dollars by memory size: of short texts, one a request, and of tokens in large requests."""
    result = results.get("cost-avx2", results["cost"])
    tokens, requests = result.parameters["tokens"], result.parameters["requests"]
    figure = Figure((8.5, 3.8))
    panels = figure.subplots(1, 2)
    sizes = [row["memory_mb"] for row in result.rows]
    for (architecture, cpu), name in zip(ARCHITECTURES.items(), ("int8", "fp32"), strict=True):
        price = PRICES[f"lambda_{architecture}_gb_second"]
        short, bulk = [], []
        for row in result.rows:
            memory_mb = row["memory_mb"]
            one, corpus = (seconds(result, row, what, cpu) for what in ("short", "corpus"))
            if one is not None and corpus is not None:
                short.append(dollars_per_million_requests(one, memory_mb, price))
                bulk.append(dollars_per_billion_tokens(corpus, requests, tokens, memory_mb, price))
        if not short:
            continue
        panels[0].plot(sizes, short, **_line(name), label=f"Lambda, {architecture}{', modelled' if cpu else ''}")
        panels[1].plot(sizes, bulk, **_line(name))
    small = PRICES["openai_text_embedding_3_small_million"]
    label = "OpenAI text-embedding-3-small"
    panels[0].axhline(small * SHORT_WORDS, color=GREY, linestyle="--", label=label)
    panels[1].axhline(small * 1000, color=GREY, linestyle="--")
    panels[0].set(title="a million short texts, one a request", ylabel="dollars")
    panels[1].set(title=f"a billion tokens, {TEXTS_PER_REQUEST} texts a request")
    for panel in panels:
        panel.set_xscale("log", base=2)
        panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_ylim(bottom=0)
        panel.set_xlabel("memory size, MB")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@_styled
def load(results: Results) -> Figure:
    """Above, percentiles of each kind of request inside the function and for the client; below, memory over the run."""
    rows = [row for row in results["load"].rows if row["measure"] == "latency"]
    (memory,) = (row for row in results["load"].rows if row["measure"] == "memory")
    figure = Figure((7.5, 3.4 + 0.27 * len(rows)))
    above, below = figure.subplots(2, 1, height_ratios=(0.27 * len(rows), 1.5))
    sides = (("function_ms", "int8", -0.16, "inside the function"), ("client_ms", "fp32", 0.16, "for the client"))
    for name, colour, offset, _ in sides:
        places = {height + offset: row[name] for height, row in enumerate(rows) if row[name]}
        _percentile_lines(above, places, COLOURS[colour])
    handles = [Line2D([], [], color=COLOURS[colour], label=label) for _, colour, _, label in sides]
    for name, marker in zip(SHARES, _MARKS, strict=True):
        handles.append(Line2D([], [], linestyle="none", marker=marker, color=GREY, label=name))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), handlelength=1, columnspacing=1.2)
    above.set_xscale("log")
    above.minorticks_off()
    above.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    above.set_yticks(range(len(rows)), [row["kind"] for row in rows])
    above.set(ylim=(len(rows) - 0.5, -0.5), xlabel="ms")
    above.grid(visible=False, axis="y")
    below.plot(memory["answered"], memory["rss_mb"], color=COLOURS["int8"], linewidth=1.6)
    first, last = quarters(memory["rss_mb"])
    below.set_title(f"median of the first quarter {first:.1f} MB, of the last {last:.1f} MB", loc="right", fontsize=9)
    below.set(xlabel="requests answered", ylabel="resident memory, MB")
    below.set_ylim(0, 1.15 * max(memory["rss_mb"]))
    below.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    below.margins(x=0.01)
    return figure


_MARKS = ("o", "|", ">")


def _percentile_lines(axes: Axes, places: Mapping[float, Mapping[str, int]], colour: str) -> None:
    """Of the histogram at each height a line from the first percentile to the last, with its marks."""
    values = [[percentile(counts, share) for counts in places.values()] for share in SHARES.values()]
    axes.hlines(list(places), values[0], values[-1], color=colour, linewidth=1.2)
    for row, marker in zip(values, _MARKS, strict=True):
        axes.plot(
            row, list(places), color=colour, linestyle="none", marker=marker, markersize=7 if marker == "|" else 4
        )


@_styled
def save(figure: Figure, path: Path) -> None:
    """SVG, the same bytes each time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = re.sub(r"font-family: [^;\"]*", "font-family: 'DejaVu Sans', Verdana, sans-serif", path.read_text("utf-8"))
    path.write_text("\n".join(line.strip() for line in text.splitlines()) + "\n", "utf-8")


def quality_set(result: Result) -> str:
    """The set of sentence pairs, which people have scored; without one, the first."""
    found: str = next((row["set"] for row in result.rows if "spearman" in row), result.rows[0]["set"])
    return found


def corpus_rates(result: Result) -> Mapping[str, float]:
    """Of each contender, tokens per second on the corpus in one thread."""
    rows = [row for row in result.rows if "batch" not in row and row["threads"] == 1]
    return {row["contender"]: result.parameters["tokens"] / _median(row) for row in rows}


def _int8_limit(result: Result) -> float | None:
    samples = result.parameters.get("roofline", {}).get("int8_gmacs")
    return statistics.median(samples) * 1e9 / result.parameters["macs_per_token"] if samples else None


def _order(row: Mapping[str, Any]) -> tuple[int, int, int]:
    """Floor first, then our function by files, then libraries from the fastest to the reference."""
    if row["contender"] == "floor":
        return 0, 0, 0
    function = row.get("mode") == "function"
    place = [*CONTENDERS][::-1].index(row["contender"])
    return 1 if function else 2, [*FILES].index(row.get("files", "page cache")), place


def _end(row: Mapping[str, Any]) -> float:
    """Where a row's bar ends, ms."""
    phases: dict[str, list[float]] = row.get("phases", {})
    return 1000 * max(sum(map(statistics.median, phases.values())), _median(row))


def _label(row: Mapping[str, Any]) -> str:
    if row["contender"] == "floor":
        return "import numpy, onnxruntime"
    title = CONTENDERS[row["contender"]].title
    if row.get("mode") != "function":
        return title
    return f"function, {FILES[row['files']]}"


def _median(row: Mapping[str, Any]) -> float:
    seconds: list[float] = row["seconds"]
    return statistics.median(seconds)


def _line(name: str) -> dict[str, Any]:
    ours = name == "int8"
    return {
        "color": COLOURS[name],
        "marker": MARKERS[name],
        "markersize": 6 if ours else 5,
        "linewidth": 2.4 if ours else 1.3,
    }


def _label_points(axes: Axes, places: Mapping[str, tuple[float, float]]) -> None:
    """Give every point its title where it meets neither another title nor another point."""
    figure = axes.figure
    assert isinstance(figure, Figure)  # noqa: S101  no subfigures here
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    figure.draw(renderer)  # places the axes
    points = [axes.transData.transform(place) for place in places.values()]
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in points]
    offsets = [(8, 0), (-8, 0), *((side * 4, height) for height in (18, -18, 34, 50, 66, 82, 98) for side in (1, -1))]
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        for x, y in offsets:
            line = {"arrowstyle": "-", "color": COLOURS[name], "alpha": 0.5, "relpos": (0 if x > 0 else 1, 0.5)}
            label = axes.annotate(
                CONTENDERS[name].title,
                place,
                (x, y),
                textcoords="offset points",
                ha="left" if x > 0 else "right",
                va="center",
                color=COLOURS[name],
                arrowprops=line if y else None,
            )
            label.update_positions(renderer)
            box = Text.get_window_extent(label, renderer).padded(3)  # without the line to the point
            inside = all(axes.bbox.contains(*corner) for corner in (box.min, box.max))
            if inside and not any(box.overlaps(other) for other in taken):
                break
            if (x, y) != offsets[-1]:
                label.remove()
        taken.append(box)
