"""The comparison of a sweep's runs: what differs, what came of it, and what became of those that failed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from matplotlib.image import imread

from neurofreeze.cli import main
from neurofreeze.errors import RunError
from neurofreeze.report.figures.trade_off import trade_off
from neurofreeze.report.sweep.content import Sweep
from neurofreeze.report.sweep.gather import gather

from . import folders


@pytest.fixture
def found(tmp_path: Path) -> Sweep:
    return gather(folders.sweep(tmp_path / "s"))


def test_runs_are_compared_by_the_settings_that_differ(found: Sweep) -> None:
    assert found.settings == ["strategy", "fraction"]
    assert [run.settings for run in found.runs[:2]] == [
        {"strategy": "wifv", "fraction": "0.05"},
        {"strategy": "wifv", "fraction": "0.15"},
    ]


def test_the_numbers_of_every_arm_are_there(found: Sweep) -> None:
    run = found.runs[1]
    assert [arm.name for arm in run.arms] == ["none", "safety"]
    safety = run.arms[1]
    assert safety.refusals is not None
    assert (safety.refusals.count, safety.refusals.total) == (8, 10)
    assert safety.refusals.low == pytest.approx(0.490, abs=1e-3)  # Wilson
    assert (safety.margin, safety.domain_loss, safety.frozen, safety.verified) == (1.0, 2.8, 0.15, "intact")
    assert run.arms[0].verified == "-"


def test_one_start_stands_for_all(found: Sweep) -> None:
    assert found.start is not None
    assert found.start.refusals is not None
    assert found.start.refusals.count == 9


def test_a_start_that_differs_is_shown_with_each_run(tmp_path: Path) -> None:
    for number in (0, 1):
        folders.job(tmp_path / str(number), {"start": number, "safety": 5})
    found = gather(tmp_path)
    assert found.start is None
    assert [arm.name for run in found.runs for arm in run.arms] == ["start", "safety"] * 2


def test_failed_and_missing_runs_stay_with_their_state(found: Sweep) -> None:
    assert [run.state for run in found.runs] == ["complete"] * 4 + ["failed, code 3", "missing"]
    assert [run.settings["fraction"] for run in found.runs[4:]] == ["0.4", "0.5"]
    assert len(found.points) == 8


def test_what_others_came_to_is_shown_where_slurm_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(_: object) -> None:
        raise RunError("squeue did not answer within 60 s")

    monkeypatch.setattr("neurofreeze.launcher.slurm.available", lambda: True)
    monkeypatch.setattr("neurofreeze.launcher.slurm.squeue", silent)
    folder = folders.sweep(tmp_path / "s")
    (folder / "4" / "result.json").unlink()
    (folder / "4" / "job.json").write_text('{"submitted": {"job_id": "12_4"}}', encoding="utf-8")
    assert [run.state for run in gather(folder).runs] == ["complete"] * 4 + ["unknown", "missing"]


def test_a_folder_of_runs_is_a_sweep_too(tmp_path: Path) -> None:
    found = gather(folders.sweep(tmp_path / "s", listed=False))
    assert [run.name for run in found.runs] == ["0", "1", "2", "3", "4"]
    assert set(found.settings) == {"strategy.name", "fraction"}, "read from the settings of each run"


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no sweep: neither sweep\.json nor folders of runs"):
        gather(tmp_path)


def test_a_changed_element_is_seen(tmp_path: Path) -> None:
    folders.job(tmp_path / "0", {"start": 9, "safety": 5})
    path = tmp_path / "0" / "result.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    result["metrics"]["safety.changed"] = 7
    path.write_text(json.dumps(result), encoding="utf-8")
    assert gather(tmp_path).runs[0].arms[0].verified == "CHANGED"
    assert main(["report", str(tmp_path)]) == 0
    assert "CHANGED: frozen elements of at least one arm" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_seeds_are_summed_up_where_nothing_else_differs(tmp_path: Path) -> None:
    found = gather(folders.over_seeds(tmp_path))
    assert [(group.settings, group.arm, group.seeds) for group in found.seeds] == [
        ({"fraction": "0.1"}, "none", 3),
        ({"fraction": "0.1"}, "safety", 3),
    ]
    safety = found.seeds[1].refusals
    assert (safety.mean, safety.low, safety.high) == pytest.approx((0.7, 0.5, 0.8))


def test_no_seeds_no_summary(found: Sweep) -> None:
    assert found.seeds == []


def test_settings_that_differ_show_no_secret(tmp_path: Path) -> None:
    for number, text in enumerate(("hf_abcdefghijklmnopqrstuvwx", "plain")):
        folders.job(tmp_path / str(number), {"safety": 5}, model=text)
    assert [run.settings for run in gather(tmp_path).runs] == [{"model": "[redacted]"}, {"model": "plain"}]


def test_the_figure_has_a_colour_for_each_arm(found: Sweep, tmp_path: Path) -> None:
    (tmp_path / "figure.png").write_bytes(trade_off(found))
    pixels = {tuple(pixel) for pixel in (imread(tmp_path / "figure.png")[..., :3] * 255).astype(int).reshape(-1, 3)}
    assert {(0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2)} <= pixels


@pytest.mark.parametrize("named", [True, False])
def test_the_command_prints_the_table_and_writes_the_page(
    named: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folders.sweep(tmp_path / "s")
    assert main(["report", f"sweep={folder}" if named else str(folder)]) == 0
    said = capsys.readouterr().out
    for text in ("wifv", "random", "8/10", "49-94 %", "failed, code 3", "missing", "intact", "15 %"):
        assert text in said
    page = (folder / "report.html").read_text(encoding="utf-8")
    for text in (">strategy<", "failed, code 3", "missing", "6, of which 4 complete", "data:image/png;base64,"):
        assert text in page
    cells = [re.sub(r"<[^>]+>|\s+", " ", row) for row in page.split("<tr>")]
    assert any(all(text in row for text in ("wifv", "safety", "8/10", "49-94 %", "2.80", "15 %")) for row in cells)


def test_a_run_that_only_selected_is_complete_without_numbers(tmp_path: Path) -> None:
    folders.job(tmp_path / "0", {})
    run = gather(tmp_path).runs[0]
    assert (run.state, run.arms) == ("complete", [])
    assert main(["report", str(tmp_path)]) == 0
    assert "complete, nothing was evaluated" in (tmp_path / "report.html").read_text(encoding="utf-8")
