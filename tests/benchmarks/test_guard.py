"""The guard benchmark's own arithmetic, on made-up seconds, and that its arms run."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from tests.benchmarks.guard import Bench, Setting, table


def test_each_arm_is_compared_with_what_its_goal_names() -> None:
    seconds = {"plain": 1.0, "again": 1.0, "probe": 1.01, "neurons": 1.03, "two models": 2.0, "lif": 2.04}
    result = {
        "setting": {"batch": 4, "tokens": 10},
        "seconds": {label: [[value, value], [value]] for label, value in {**seconds, "lif, published": 6.12}.items()},
        "memory": {"plain": 1000, "probe": 1005, "neurons": 1020, "two models": 2000, "lif": 2000},
    }
    out = StringIO()
    Console(file=out, width=200).print(table([result]))
    lines = {cells[1]: cells for line in out.getvalue().splitlines() if len(cells := _cells(line)) == 8}
    assert lines["plain"][3] == "40.0", "tokens of the batch a second"
    assert lines["probe"][4:] == ["1.010 [1.010, 1.010]", "<= 1.02: met", "1.005", "<= 1.01: met"]
    assert lines["neurons"][4:] == ["1.030 [1.030, 1.030]", "<= 1.02: not met", "1.020", "<= 1.01: not met"]
    assert lines["lif"][2:6] == ["two models", "19.6", "1.020 [1.020, 1.020]", "<= 1.05: met"]
    assert lines["lif, published"][2] == "lif"
    assert lines["lif, published"][4].startswith("3.000")


def test_a_gate_that_never_fires_writes_what_plain_generate_writes() -> None:
    bench = Bench(Setting(None, None, batch=2, tokens=3, threads=1, cpu_time=True), expert=False)
    arms = bench.arms()
    for label in ("probe", "neurons"):
        assert arms[label]().tolist() == arms["plain"]().tolist()


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")]
