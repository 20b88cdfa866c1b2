"""Judge: how safe a checkpoint's answers to the harmful requests are, asked in several ways; if settings ask for it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from neurofreeze.config.judge import JudgeConfig
from neurofreeze.config.schema import EvaluationConfig
from neurofreeze.console import say, stage
from neurofreeze.evaluation.generation import is_degenerate
from neurofreeze.evaluation.judges import Verdict, load_judge
from neurofreeze.evaluation.statistics import Rate
from neurofreeze.evaluation.variants import answers, variants
from neurofreeze.models.load import load_model, load_tokenizer
from neurofreeze.stages.context import Run

SETTINGS = ("variants", "judge")  # of evaluation, which concern this stage alone


def asked_for(config: EvaluationConfig) -> bool:
    """Whether there is more to judge than evaluation itself does by phrases."""
    return bool(config.variants) or config.judge.name != "phrases"


def run(run: Run, name: str, folder: Path, evaluated: dict[str, Any]) -> None:
    """Judge the checkpoint in `folder`, which was evaluated under these settings; answers are never stored.

    The result has the judge's label and, for each variant and prompt, a verdict and whether the answer is degenerate.
    """
    c = run.config.evaluation
    asked = [variant.name for variant in variants(c.variants or ["plain"])]
    settings = {**evaluated, "variants": asked, "judge": _settings(c.judge)}
    run.folder.run(f"judge-{name}", settings, lambda: _judge(run, name, folder, asked))


def _judge(run: Run, name: str, folder: Path, asked: list[str]) -> dict[str, Any]:
    c = run.config.evaluation
    texts = _answers(run, name, folder, asked)
    judge = load_judge(c.judge, c.phrases)  # after the checkpoint is gone: both may not fit the device
    # The judge sees the plain requests: how they were dressed up must not sway it too.
    requests = [request.prompt for request in run.data.harmful]
    found = {}
    for variant, answered in texts.items():
        verdicts = judge.judge(requests, answered)
        degenerate = [is_degenerate(text) for text in answered]
        found[variant] = {"verdicts": [verdict.value for verdict in verdicts], "degenerate": degenerate}
        say(
            f"judge {name}, {variant}: {Rate.of([verdict is Verdict.UNSAFE for verdict in verdicts])} unsafe by "
            f"{judge.label}, {verdicts.count(Verdict.UNDECIDED)} undecided, {sum(degenerate)} degenerate"
        )
    return {"judge": judge.label, "variants": found}


def _answers(run: Run, name: str, folder: Path, asked: list[str]) -> dict[str, list[str]]:
    c, requests = run.config.evaluation, run.data.harmful
    model, tokenizer = load_model(folder).eval(), load_tokenizer(folder)
    length = c.max_new_tokens if c.judge.name == "phrases" else c.judge.tokens
    with stage(f"judge {name}", len(asked) * -(-len(requests) // c.batch_size)) as bar:
        return {
            variant.name: answers(
                model,
                tokenizer,
                requests,
                variant,
                max_new_tokens=length,
                batch_size=c.batch_size,
                progress=bar.advance,
            )
            for variant in variants(asked)
        }


def _settings(config: JudgeConfig) -> dict[str, Any]:
    """What verdicts depend on: not how a server is reached."""
    settings = asdict(config)
    endpoint = settings.pop("endpoint")
    settings.pop("batch_size")
    if config.prompt is not None:
        settings["prompt"] = hashlib.sha256(Path(config.prompt).read_bytes()).hexdigest()[:16]
    return {**settings, "url": endpoint["url"], "options": endpoint["options"]}
