"""`python -m tests.benchmarks.public_data DOWNLOADS OUTPUT`: the public sets behind docs/evidence.md, disjoint.

DOWNLOADS holds them as published, under any name that begins so: advbench*.csv (goal), safealign*.csv (prompt and
response: refusals of AdvBench requests), strongreject*.csv (forbidden_prompt, source), xstest*.csv (prompt, label),
alpaca*.json, dolly*.jsonl, gsm8k_train*.jsonl and gsm8k_test*.jsonl. OUTPUT gets JSON lines: requests that are only
measured, refusals to align, calibrate and replay, and fine-tuning sets without answers that LISTS count as refusals.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path
from typing import Any

from datasets import Dataset

from neurofreeze.data.examples import Example
from neurofreeze.evaluation.phrases import phrase_list

LISTS = [phrase_list(name) for name in ("strict-opening", "zou-qi")]
STRICT = LISTS[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("downloads", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    sets = {**requests(options.downloads), **refusals(options.downloads), **tuning(options.downloads)}
    for name, examples in sets.items():
        lines = [json.dumps({"prompt": e.prompt, **({"response": e.response} if e.response else {})}) for e in examples]
        (options.output / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(examples)}")


def requests(downloads: Path) -> dict[str, list[Example]]:
    """Requests that are measured: AdvBench's without a known refusal, others of StrongREJECT, XSTest's safe ones."""
    advbench = _unique(Example.of(row["goal"]) for row in rows(downloads, "advbench*.csv"))
    answered = {example.key for example in _answered(downloads)}
    in_advbench = {example.key for example in advbench}
    strongreject = [row for row in rows(downloads, "strongreject*.csv") if row["source"] != "AdvBench"]
    return {
        "advbench": [example for example in advbench if example.key not in answered],
        "strongreject": [
            example
            for example in _unique(Example.of(row["forbidden_prompt"]) for row in strongreject)
            if example.key not in in_advbench
        ],
        "xstest_safe": _unique(
            Example.of(row["prompt"]) for row in rows(downloads, "xstest*.csv") if row["label"] == "safe"
        ),
    }


def refusals(downloads: Path) -> dict[str, list[Example]]:
    """One refusal of each AdvBench request that has some: to align by (and to replay), and to calibrate on."""
    found = _shuffled(_unique(example for example in _answered(downloads) if STRICT.is_refusal(example.response or "")))
    return {"refusals_align": found[:240], "refusals_calibration": found[240:]}


def tuning(downloads: Path) -> dict[str, list[Example]]:
    """Benign sets: Alpaca in four parts, Dolly and GSM8K in two."""
    alpaca = _harmless(rows(downloads, "alpaca*.json"), "instruction", "input", "output")
    dolly = _harmless(rows(downloads, "dolly*.jsonl"), "instruction", "context", "response")
    train, test = (_harmless(rows(downloads, f"gsm8k_{s}*.jsonl"), "question", "", "answer") for s in ("train", "test"))
    return {
        "alpaca_align": alpaca[:300],
        "alpaca_calibration": alpaca[300:400],
        "alpaca_train": alpaca[400:1400],
        "alpaca_holdout": alpaca[1400:1500],
        "dolly_train": dolly[:250],
        "dolly_holdout": dolly[250:],
        "gsm8k_train": train[:1000],
        "gsm8k_holdout": test[:100],
    }


def rows(downloads: Path, pattern: str) -> list[dict[str, Any]]:
    """The rows of the one file that fits."""
    found = sorted(downloads.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"{downloads} has {len(found)} files {pattern}; expected one")
    read = Dataset.from_csv if found[0].suffix == ".csv" else Dataset.from_json
    return list(read(str(found[0])))


def _answered(downloads: Path) -> list[Example]:
    return [
        Example.of(re.sub(r"\[/?INST\]", "", row["prompt"]).strip(), row["response"].strip())
        for row in rows(downloads, "safealign*.csv")
    ]


def _harmless(found: list[dict[str, Any]], question: str, context: str, answer: str) -> list[Example]:
    examples = [Example.of("\n\n".join(filter(None, [r[question], r.get(context)])), r[answer].strip()) for r in found]
    kept = [e for e in examples if e.response and not any(phrases.is_refusal(e.response) for phrases in LISTS)]
    return _shuffled(_unique(kept))


def _unique(examples: Any) -> list[Example]:
    return list({example.key: example for example in reversed(list(examples))}.values())[::-1]


def _shuffled(examples: list[Example]) -> list[Example]:
    return random.Random(0).sample(examples, len(examples))


if __name__ == "__main__":
    main()
