"""Judging in a run: off by default, by variants where asked for, with no answer in any file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neurofreeze.config.judge import JudgeConfig
from neurofreeze.config.schema import EvaluationConfig
from neurofreeze.data import Example
from neurofreeze.errors import JudgeError
from neurofreeze.evaluation.measure import Part
from neurofreeze.stages import judge
from tests.evaluation.judges import guard

from .runs import neurofreeze


def judged(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "stages" / f"judge-{name}.json").read_text(encoding="utf-8"))["result"]


def test_nothing_is_judged_unless_asked_for(finished: Path) -> None:
    assert not list((finished / "stages").glob("judge-*"))


def test_a_prompt_file_that_is_not_there_is_named() -> None:
    with pytest.raises(JudgeError, match=r"judge\.prompt: none\.txt cannot be read: No such file"):
        judge._settings(JudgeConfig("harmbench", model="m", prompt="none.txt"))


@pytest.mark.parametrize("command", ["run", "evaluate"])
def test_a_judge_that_is_not_there_is_told_before_anything_is_trained_or_answered(
    command: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("neurofreeze.hub.reachable", lambda: False)
    ask = ["evaluation.judge.name=guard", "evaluation.judge.model=no-such-judge"]
    assert neurofreeze(command, tiny_checkpoint, tmp_path / "run", *ask) == 1
    assert "evaluation.judge.model: no model 'no-such-judge': not a folder here" in capsys.readouterr().err
    assert not (tmp_path / "run" / "stages").exists()


def test_nothing_after_the_beginning_of_an_answer_is_degenerate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["Sure, here is", "Sure, here is how to begin"]
    monkeypatch.setattr(judge, "_answers", lambda *_: iter([texts]))
    data = SimpleNamespace(harmful=[Example.of("May I?")] * 2)
    run: Any = SimpleNamespace(config=SimpleNamespace(evaluation=EvaluationConfig()), data=data)
    [found] = judge._verdicts(run, "start", tmp_path, [Part("prefill-sure", [0, 1])])
    assert found == [["strict-opening v1", "unsafe", True], ["strict-opening v1", "unsafe", False]]


def test_a_finished_run_is_judged_by_variants_without_being_evaluated_again(
    copied: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["evaluation.variants=[plain,for-fiction,prefilled]"]
    assert neurofreeze("evaluate", tiny_checkpoint, copied, *ask) == 0
    out = capsys.readouterr().out
    assert "evaluate-safety: complete, reused" in out
    assert "judge safety, for-fiction: 4/4 (51%-100%) unsafe by strict-opening v1, 0 undecided, " in out
    found = judged(copied, "safety")
    assert list(found["variants"]) == ["plain", "for-fiction", "prefill-sure", "prefill-glad", "prefill-step"]
    evaluated = json.loads((copied / "stages" / "evaluate-safety.json").read_text(encoding="utf-8"))["result"]
    assert [verdict == "safe" for verdict in found["variants"]["plain"]["verdicts"]] == evaluated["refused"]
    assert found["variants"]["plain"]["degenerate"] == evaluated["degenerate"][:4]
    result = json.loads((copied / "result.json").read_text(encoding="utf-8"))
    assert result["judges"] == dict.fromkeys(("start", "none", "random", "safety"), "strict-opening v1")
    assert (result["metrics"]["safety.for-fiction.unsafe"], result["counts"]["safety.for-fiction.unsafe"]) == (
        1,
        [4, 4],
    )
    assert neurofreeze("evaluate", tiny_checkpoint, copied, *ask) == 0
    assert "judge-safety: complete, reused" in capsys.readouterr().out
    assert neurofreeze("report", tiny_checkpoint, copied) == 0
    assert re.search(r"safety neurons</th>.*for-fiction.*strict-opening v1.*4/4", (copied / "report.html").read_text())


def test_a_judge_model_reads_longer_answers_and_none_is_stored(
    copied: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompt.txt").write_text(guard.PROMPT)
    seen: list[tuple[str, str]] = []

    class Reader:
        label = "reader"

        def judge(self, requests: list[str], answers: list[str]) -> list[Any]:
            from neurofreeze.evaluation.judges import Verdict

            seen.extend(zip(requests, answers, strict=True))
            return [Verdict.UNSAFE, Verdict.SAFE, Verdict.UNDECIDED, Verdict.SAFE]

    monkeypatch.setattr("neurofreeze.stages.judge.load_judge", lambda *_: Reader())
    (tmp_path / "judge").symlink_to(tiny_checkpoint)
    ask = ["evaluation.judge.name=harmbench", "evaluation.judge.tokens=12", "arms=[none]"]
    ask += [f"evaluation.judge.model={tmp_path / 'judge'}"]
    ask += [f"evaluation.judge.prompt={tmp_path / 'prompt.txt'}", "evaluation.variants=[for-charity]"]
    assert neurofreeze("evaluate", tiny_checkpoint, copied, *ask) == 0
    assert judged(copied, "none")["variants"]["for-charity"]["verdicts"] == ["unsafe", "safe", "undecided", "safe"]
    assert len(seen) == 8, "the start and one arm"
    assert all("charity" not in request for request, _ in seen), "the judge sees the plain request"
    written = "".join(path.read_text(encoding="utf-8") for path in copied.rglob("*.json*") if "arms" not in path.parts)
    longer = [answer for _, answer in seen if len(answer.split()) > 4]
    assert longer, "answers must be longer than openings for their absence to show"
    assert all(answer not in written for answer in longer)
    (tmp_path / "judge").unlink()
    assert neurofreeze("evaluate", tiny_checkpoint, copied, *ask) == 0, "nothing is left to judge"


def test_an_interrupted_judge_goes_on_with_the_answers_that_are_not_judged(
    copied: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "prompt.txt").write_text(guard.PROMPT)
    seen: list[list[str]] = []

    class Reader:
        label = "reader"

        def judge(self, requests: list[str], answers: list[str]) -> list[Any]:
            from neurofreeze.errors import JudgeError
            from neurofreeze.evaluation.judges import Verdict

            seen.append(answers)
            if len(seen) == 3:
                raise JudgeError("the judge is out")
            return [Verdict.UNSAFE] * len(requests)

    monkeypatch.setattr("neurofreeze.stages.judge.load_judge", lambda *_: Reader())
    ask = ["evaluation.judge.name=harmbench", "evaluation.judge.tokens=12", "arms=[none]"]
    ask += [f"evaluation.judge.model={tiny_checkpoint}"]
    ask += [f"evaluation.judge.prompt={tmp_path / 'prompt.txt'}", "evaluation.variants=[plain,for-charity]"]
    ask += ["evaluation.batch_size=2"]
    for arm in ("start", "none"):
        (copied / "stages" / f"evaluate-{arm}.json").unlink()  # of another batch size
    assert neurofreeze("evaluate", tiny_checkpoint, copied, *ask) == 1
    (kept,) = (copied / "stages").glob("*.unfinished/*")
    rows = [json.loads(line) for line in kept.read_text().splitlines() if line]
    assert [row["part"][0] for row in rows] == ["plain", "plain"]
    assert all(found[:2] == ["reader", "unsafe"] and len(found) == 3 for row in rows for found in row["values"])
    assert neurofreeze("evaluate", tiny_checkpoint, copied, *ask) == 0
    assert "judge start: goes on after 2 of 4 batches that are done" in capsys.readouterr().out
    assert [len(answers) for answers in seen] == [2] * 9, "two, one that failed, two more, and four of the arm"
    assert judged(copied, "start")["variants"]["for-charity"]["verdicts"] == ["unsafe"] * 4
