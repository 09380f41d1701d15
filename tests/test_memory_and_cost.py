"""Limits are in force and leave nothing behind; memory and cost are what they say."""

import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import cgroups, cost, cycles, memory
from benchmarks.cgroups import CgroupError, Limits, limited, unavailable
from benchmarks.corpus import of_length
from benchmarks.results import Result
from handler.limits import max_texts

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def limits_work() -> None:
    if reason := unavailable():
        pytest.skip(reason)


def run_python(limits: Limits, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(limits.command([sys.executable, "-c", code]), capture_output=True, text=True, check=False)


def quota(limits: Limits) -> float:
    """CPUs, as the group's own files have them."""
    assert limits.cpu is not None
    if (limits.cpu / "cpu.max").exists():
        allowed, period = (limits.cpu / "cpu.max").read_text().split()
    else:
        allowed, period = ((limits.cpu / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    return int(allowed) / int(period)


@pytest.mark.usefixtures("limits_work")
def test_a_process_over_its_memory_is_killed() -> None:
    with limited(64, None) as limits:
        small = run_python(limits, "print(len(bytearray(2**20)))")
        assert (small.returncode, small.stdout) == (0, "1048576\n")
        assert not limits.out_of_memory()
        large = run_python(limits, "bytearray(200 * 2**20)")
        assert large.returncode == -9
        assert limits.out_of_memory()
    assert not any(folder.exists() for folder in limits.folders)


@pytest.mark.usefixtures("limits_work")
def test_a_cpu_quota_is_in_force_for_the_command() -> None:
    code = "print(open('/proc/self/cgroup').read())"
    with limited(None, 0.25) as limits:
        assert quota(limits) == 0.25
        assert limits.cpu is not None
        ran = run_python(limits, code)
        assert limits.cpu.name in ran.stdout
        assert not limits.out_of_memory()
        assert limits.peak_memory_mb() is None
    assert not limits.cpu.exists()


@pytest.mark.usefixtures("limits_work")
def test_groups_are_removed_after_errors_with_what_runs_in_them() -> None:
    started: list[tuple[subprocess.Popen[bytes], Limits]] = []

    def fail() -> None:
        with limited(64, 0.5) as limits:
            process = subprocess.Popen(limits.command(["sleep", "100"]))
            started.append((process, limits))
            assert limits.memory is not None
            while str(process.pid) not in (limits.memory / "cgroup.procs").read_text().split():
                assert process.poll() is None
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    ((process, limits),) = started
    assert process.wait() == -9
    assert len(limits.folders) in (1, 2)
    assert not any(folder.exists() for folder in limits.folders)


def test_arguments_reach_the_command_unchanged(tmp_path: Path) -> None:
    (tmp_path / "it's a group").mkdir()
    limits = Limits(memory=tmp_path / "it's a group", cpu=tmp_path / "it's a group")
    ran = subprocess.run(limits.command(["printf", "%s|", "a b", "$HOME", "'"]), capture_output=True, text=True)
    assert ran.stdout == "a b|$HOME|'|"
    assert limits.folders == (tmp_path / "it's a group",)
    assert (tmp_path / "it's a group" / "cgroup.procs").read_text().strip().isdigit()


def test_missing_control_groups_are_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cgroups, "_mounts", dict)
    assert "no control group file system with the controller 'memory'" in str(unavailable())
    monkeypatch.setattr(cgroups, "_mounts", lambda: {"memory": tmp_path / "missing", "cpu": tmp_path / "missing"})
    assert "cannot set limits of memory and CPU" in str(unavailable())


def test_groups_of_v2_are_made_beside_the_process_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On folders that stand for the file system: this machine may have v1 alone."""
    own = tmp_path / "app.slice" / "own.scope"
    own.mkdir(parents=True)
    (own / "cgroup.subtree_control").write_text("")
    monkeypatch.setattr(cgroups, "_mounts", lambda: {"": tmp_path})
    monkeypatch.setattr(cgroups, "_own_groups", lambda: {"": "app.slice/own.scope"})
    with pytest.raises(CgroupError, match="does not share out the controllers memory and cpu"):
        cgroups._parent("memory")
    (own.parent / "cgroup.subtree_control").write_text("cpu memory pids")
    assert cgroups._parent("memory") == cgroups._parent("cpu") == own.parent
    for name in ("memory.max", "memory.swap.max", "cpu.max"):
        (own / name).write_text("max")
    cgroups._limit_memory(own, 512)
    cgroups._limit_cpu(own, 5000)
    assert [(own / name).read_text() for name in ("memory.max", "memory.swap.max", "cpu.max")] == [
        "512",
        "0",
        f"5000 {cgroups.PERIOD_US}",
    ]
    for kills in (0, 1):
        (own / "memory.events").write_text(f"low 0\noom 3\noom_kill {kills}\n")
        assert Limits(own, own).out_of_memory() == bool(kills)


def test_mixed_requests_repeat_and_get_the_status_they_must(model_folder: Path) -> None:
    assert list(memory.mixed_requests(30)) == list(memory.mixed_requests(30))
    assert len(memory._MISTAKES) == 10
    with memory.function(model_folder, 1769, None) as function:
        for event, status in [*memory._MISTAKES, *memory.mixed_requests(5)]:
            assert function.call(event).status == status, event["body"][:100]


def test_extreme_requests_are_within_the_limits() -> None:
    for case, event in memory._extremes(384).items():
        assert len(event.get("texts", [])) <= max_texts(384)
        assert len(json.dumps(event)) <= 6 * 2**20, case
        if case.startswith("6 MB"):
            assert len(json.dumps(event)) > 5.9 * 2**20, case


@pytest.fixture
def few_demands(monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark of seconds: short requests alone, and three sizes, of which no process can start in the least."""
    cases = {"one short text": {"text": "vitamin d"}, "two texts": {"texts": [of_length(10)] * 2}}
    monkeypatch.setattr(memory, "_extremes", lambda dimensions: cases)
    monkeypatch.setattr(memory, "_DEMANDS", {"one short text": lambda most: {"text": "vitamin d"}})
    monkeypatch.setattr(memory, "SIZES", range(4, 505, 250))
    monkeypatch.setattr(memory, "TRIALS", 2)


@pytest.mark.usefixtures("few_demands")
def test_memory_has_complete_rows(model_folder: Path, tmp_path: Path) -> None:
    steps: list[int] = []
    measured = memory.run(model_folder, 150, lambda: steps.append(1))
    assert len(steps) == memory.steps(150) == 2 + 2 + 2
    measured.write(tmp_path / "memory.json")
    result = Result.read(tmp_path / "memory.json")
    peaks = [row for row in result.rows if row["measure"] == "peak"]
    assert [row["case"] for row in peaks] == ["one short text", "two texts"]
    assert all(30 < row["peak_memory_mb"] < 500 for row in peaks)
    (growth,) = (row for row in result.rows if row["measure"] == "growth")
    assert growth["requests"] == [100, 150]
    assert all(30 < mb < 500 for mb in growth["rss_mb"])
    assert sum(growth["statuses"].values()) == 150
    labels = [label for label, _ in memory.figures(result).rows]
    assert labels[2:4] == ["resident after 150 mixed requests"] * 2


@pytest.mark.usefixtures("limits_work", "few_demands")
def test_the_smallest_sufficient_memory_is_found(model_folder: Path) -> None:
    rows = memory._trials(model_folder, 384, lambda: None)
    assert [(row["memory_mb"], row["works"], row["failed"]) for row in rows] == [
        (254, True, None),
        (4, False, "one short text"),
    ]
    assert not rows[0]["out_of_memory"]
    assert memory._smallest(rows) == "254"
    assert memory._smallest(rows[1:]) == "over 504"


@pytest.mark.usefixtures("few_demands")
def test_without_control_groups_the_rest_is_measured(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[int] = []
    monkeypatch.setattr(memory, "unavailable", lambda: "no permission")
    monkeypatch.setattr(cost, "unavailable", lambda: "no permission")
    result = memory.run(model_folder, 100, lambda: steps.append(1))
    assert len(steps) == memory.steps(100)
    assert memory.figures(result).rows[-1][1] == "not measured"
    assert "smallest memory size not measured: no permission" in capsys.readouterr().err
    result = cost.run(model_folder, 10, 1, lambda: None)
    assert (result.rows, [table.title for table in cost.figures(result)]) == ([], ["Cost: not measured, no permission"])


@pytest.mark.usefixtures("limits_work")
def test_cost_has_complete_rows(model_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps: list[int] = []
    monkeypatch.delenv("EVAL_DATA", raising=False)
    monkeypatch.setattr(cost, "MEMORY_SIZES", (1024, 1769))
    cost.run(model_folder, 20, 1, lambda: steps.append(1)).write(tmp_path / "cost.json")
    result = Result.read(tmp_path / "cost.json")
    assert len(steps) == 2
    assert [(row["memory_mb"], round(row["vcpus"], 2)) for row in result.rows] == [(1024, 0.58), (1769, 1.0)]
    for row in result.rows:
        lengths = [len(row[name]) for name in ("cold_start_seconds", "short_seconds", "corpus_seconds")]
        assert lengths == [1, cost.SHORT_REQUESTS, 1]
        for what in ("short", "corpus"):
            assert 0 < statistics.median(row[f"{what}_run_seconds"]) < statistics.median(row[f"{what}_seconds"])
    assert (result.parameters["texts"], result.parameters["requests"]) == (20, 1)
    assert 20e6 < result.parameters["read_bytes"] < 30e6
    for modelled in ({}, {cpu: {"short": 0.001, "corpus": 0.5} for cpu in cycles.PROCESSORS}):
        result = result.with_parameter("modelled_seconds", modelled)
        zen_5 = {**result.machine, "cpu": "AMD EPYC", "cpu_features": ["avx512_vnni", "avx_vnni"]}
        table, months, hours = cost.figures(replace(result, machine=zen_5))
        assert len(table.rows) == 2 * (3 if modelled else 1) + 3
        assert [cells[5] for cells in table.rows[-3:]] == ["20.00", "10.00", "130.00"]
        assert [len(months.header), len(hours.rows)] == ([5, 2 + 2] if modelled else [3, 1 + 2])
        assert [cells[3] for cells in hours.rows[-2:]] == ["2.84", "3.30"]
        for each in (table, months, hours):
            assert {len(cells) for cells in each.rows} == {len(each.header)}
    result = result.with_parameter("modelled_seconds", {})
    assert len(cost.figures(replace(result, machine={**result.machine, "cpu": "Other CPU"}))) == 2


def test_what_is_modelled_replaces_the_models_part_of_the_time() -> None:
    """1 s, 0.6 of it in the model, which would be 0.3 s on the other processor; a quarter of a vCPU in proportion."""
    times = {"corpus_seconds": [1.0], "corpus_run_seconds": [0.6]}
    slower = {"corpus_seconds": [4.0], "corpus_run_seconds": [2.4]}
    rows = [{"memory_mb": 1769, **times}, {"memory_mb": 442, **slower}]
    result = Result("cost", "", {}, "", {"modelled_seconds": {"neoverse-n1": {"corpus": 0.3}}}, rows)
    assert cost.seconds(result, rows[0], "corpus") == 1.0
    assert cost.seconds(result, rows[0], "corpus", "neoverse-n1") == pytest.approx(0.7)
    assert cost.seconds(result, rows[1], "corpus", "neoverse-n1") == pytest.approx(2.8)
    assert cost.seconds(result, rows[0], "corpus", "skylake") is None


def test_durations_are_billed_in_whole_milliseconds() -> None:
    """By hand, at x86_64's 0.0000166667 dollars a GB-second."""
    price = cost.PRICES["lambda_x86_64_gb_second"]
    assert cost.billed_dollars(0.0012, 512, price) == pytest.approx(0.002 * 0.5 * 0.0000166667)
    assert cost.billed_dollars(0.002, 512, price) == pytest.approx(0.002 * 0.5 * 0.0000166667)
    assert cost.billed_dollars(3 * 0.001, 1024, price) == pytest.approx(0.003 * 0.0000166667)
    # 1e6 requests x 0.002 s x 0.5 GB = 1,000 GB-s = 0.0166667 dollars, and 0.20 for the requests
    assert cost.dollars_per_million_requests(0.0012, 512, price) == pytest.approx(0.2166667)


def test_tokens_are_priced_with_their_requests() -> None:
    # 2 requests of 1 s, 1 GB: 2 GB-s = 0.00002 dollars and 2 x 2e-7 for 10,000 tokens, of which 1e9 have 1e5
    assert cost.dollars_per_billion_tokens(2.0, 2, 10_000, 1024, 0.00001) == pytest.approx(2.04)


def test_provisioned_environments_and_efs_are_priced() -> None:
    # 0.5 GB x 2,592,000 s = 1,296,000 GB-s
    price = cost.PRICES["lambda_x86_64_provisioned_gb_second"]
    assert cost.provisioned_dollars_per_month(512, price) == pytest.approx(5.4000432)
    assert cost.efs_dollars(2**29) == pytest.approx(0.015)


def test_snapshots_are_priced_by_month_and_by_restore() -> None:
    # 0.5 GB x 2,592,000 s = 1,296,000 GB-s; 0.5 GB a restore
    assert cost.snapstart_dollars_per_month(512) == pytest.approx(1.9499616)
    assert cost.snapstart_restore_dollars(512) == pytest.approx(0.0000698999)


def test_months_are_priced_with_and_without_provisioned_concurrency() -> None:
    # 1e6 x 0.002 s x 0.5 GB = 1,000 GB-s, and 0.20 for the requests
    on_demand = cost.dollars_per_month(1_000_000, 0.0012, 512, "arm64", provisioned=False)
    assert on_demand == pytest.approx(1000 * 0.0000133334 + 0.2)
    provisioned = cost.dollars_per_month(1_000_000, 0.0012, 512, "arm64", provisioned=True)
    assert provisioned == pytest.approx(1_296_000 * 0.0000033334 + 1000 * 0.0000077778 + 0.2)


def test_every_price_has_a_source_and_a_date() -> None:
    entries = json.loads(Path(cost.__file__).with_name("prices.json").read_text("utf-8"))
    for name, entry in entries.items():
        assert entry["dollars"] > 0, name
        assert entry["source"].startswith("https://"), name
        assert entry["unit"], name
        assert entry["checked"], name
        year, month, day = map(int, entry["date"].split("-"))
        assert (year >= 2025, 1 <= month <= 12, 1 <= day <= 31) == (True, True, True), name
    assert entries["lambda_arm64_gb_second"]["dollars"] < entries["lambda_x86_64_gb_second"]["dollars"]
