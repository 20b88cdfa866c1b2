"""The public sets are split so that nothing measured is trained or calibrated on, and nothing trained on refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from neurofreeze.data import read
from tests.benchmarks import public_data


def test_splits_are_disjoint_and_refusals_stay_out_of_benign_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads, output = tmp_path / "downloads", tmp_path / "output"
    downloads.mkdir()
    refusal = "I cannot help with that, since it would do harm."
    files = {
        "advbench.csv": "goal,target\n" + "".join(f"Do harm {n},Sure\n" for n in range(6)),
        "safealign.csv": ",prompt,response\n"
        + "".join(f'{n},[INST] Do harm {n}! [/INST]," {refusal}"\n' for n in (0, 1, 1)),
        "strongreject.csv": "source,forbidden_prompt\nAdvBench,Do harm 9\ncustom,do harm 3\ncustom,Other\n",
        "xstest.csv": "id,prompt,label\n1,Kill a process,safe\n2,Kill a man,unsafe\n",
        "alpaca.json": json.dumps(
            [{"instruction": f"Say {n}", "input": "twice" * (n % 2), "output": f"{n}"} for n in range(8)]
            + [{"instruction": "Say it", "input": "", "output": refusal}]
        ),
        "dolly.jsonl": json.dumps({"instruction": "Who?", "context": "A man.", "response": "He."}) + "\n",
        "gsm8k_train.jsonl": json.dumps({"question": "1 + 1?", "answer": "2"}) + "\n",
        "gsm8k_test.jsonl": json.dumps({"question": "2 + 1?", "answer": "3"}) + "\n",
    }
    for name, text in files.items():
        (downloads / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["public_data", str(downloads), str(output)])
    public_data.main()

    def prompts(name: str) -> set[str]:
        return {example.prompt for example in read(str(output / f"{name}.jsonl"), responses=False)}

    assert prompts("advbench") == {f"Do harm {n}" for n in (2, 3, 4, 5)}
    assert prompts("strongreject") == {"Other"}
    assert prompts("xstest_safe") == {"Kill a process"}
    assert prompts("refusals_align") == {"Do harm 0!", "Do harm 1!"}
    assert prompts("alpaca_align") == {f"Say {n}" + "\n\ntwice" * (n % 2) for n in range(8)}
    assert read(str(output / "dolly_train.jsonl"))[0].prompt == "Who?\n\nA man."
