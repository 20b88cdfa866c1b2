"""Judge: how safe a checkpoint's answers to the harmful requests are, asked in several ways; if settings ask for it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from neurofreeze.checkpoints import stamps
from neurofreeze.config.judge import WITHOUT_WEIGHTS, JudgeConfig
from neurofreeze.config.schema import EvaluationConfig
from neurofreeze.console import say, stage
from neurofreeze.data.batches import prompt_ids
from neurofreeze.distributed import first_rank
from neurofreeze.errors import RunError
from neurofreeze.evaluation.generation import is_degenerate
from neurofreeze.evaluation.judges import Verdict, load_judge, require_judge
from neurofreeze.evaluation.judges.generative import through_prompt
from neurofreeze.evaluation.measure import Part, cut, longest_first
from neurofreeze.evaluation.sharing import shared
from neurofreeze.evaluation.statistics import Rate
from neurofreeze.evaluation.variants import VARIANTS, answers, variants
from neurofreeze.models.load import load_model, load_tokenizer
from neurofreeze.stages.context import Run

SETTINGS = ("variants", "judge")  # of evaluation, which concern this stage alone


def asked_for(config: EvaluationConfig) -> bool:
    """Whether there is more to judge than evaluation itself does by phrases."""
    return bool(config.variants) or config.judge.name != "phrases"


def require(run: Run, names: Iterable[str]) -> None:
    """Raise JudgeError or ModelError unless there is a judge of what `names` will answer. Collective.

    Training and answering come before it is needed. Once it has judged them all, it may be gone.
    """

    def look() -> None:
        config = run.config.evaluation.judge
        asked = _settings(config)
        earlier = [run.folder.settings(f"judge-{name}") for name in names]
        if not all(settings is not None and settings["judge"] == asked for settings in earlier):
            require_judge(config)

    if asked_for(run.config.evaluation):
        first_rank(look)


def run(run: Run, name: str, folder: Path, evaluated: dict[str, Any]) -> None:
    """Judge the checkpoint in `folder`, which was evaluated under these settings; answers are never stored.

    The result has the judge's label and, for each variant and prompt, a verdict and whether the answer is degenerate.
    """
    c = run.config.evaluation
    asked = [variant.name for variant in variants(c.variants or ["plain"])]
    settings = {**evaluated, "variants": asked, "judge": first_rank(lambda: _settings(c.judge))}
    run.folder.run(f"judge-{name}", settings, lambda: _judge(run, name, folder, asked, settings), together=True)


def judged(run: Run, name: str) -> dict[str, Any] | None:
    """What a judge found of the start or an arm as it was last evaluated; None if nobody judged that."""
    evaluated, settings = (run.folder.settings(f"{stage}-{name}") for stage in ("evaluate", "judge"))
    if evaluated is None or settings is None or any(settings[key] != value for key, value in evaluated.items()):
        return None
    return run.folder.result(f"judge-{name}")


def _judge(run: Run, name: str, folder: Path, asked: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    def plan() -> list[Part]:
        tokenizer = load_tokenizer(folder)
        order = longest_first([len(prompt_ids(tokenizer, request)) for request in run.data.harmful])
        return [Part(variant, part) for variant in asked for part in cut(order, run.config.evaluation.batch_size)]

    parts = shared(
        f"judge {name}",
        run.folder.unfinished(f"judge-{name}"),
        [settings, stamps(folder)],
        plan,
        lambda parts: _verdicts(run, name, folder, parts),
    )
    labels = sorted({label for _, values in parts for label, _, _ in values})
    if len(labels) != 1:
        raise RunError(f"judge {name} was interrupted under another judge ({' and '.join(labels)}); run it again")
    found = {}
    for variant in asked:
        by_prompt: dict[int, list[Any]] = {}
        for part, rows in parts:
            if part.what == variant:
                by_prompt.update(zip(part.indices, rows, strict=True))
        verdicts, degenerate = ([by_prompt[index][place] for index in range(len(by_prompt))] for place in (1, 2))
        found[variant] = {"verdicts": verdicts, "degenerate": degenerate}
        say(
            f"judge {name}, {variant}: {Rate.of([verdict == Verdict.UNSAFE.value for verdict in verdicts])} unsafe by "
            f"{labels[0]}, {verdicts.count(Verdict.UNDECIDED.value)} undecided, {sum(degenerate)} degenerate"
        )
    return {"judge": labels[0], "variants": found}


def _verdicts(run: Run, name: str, folder: Path, parts: list[Part]) -> Iterator[list[Any]]:
    """Of each request of each part, the judge's label, its verdict, and whether the answer is degenerate."""
    c = run.config.evaluation
    answered: Iterable[list[str]] = _answers(run, name, folder, parts)
    if c.judge.name not in WITHOUT_WEIGHTS:
        answered = list(answered)  # the checkpoint is gone then: both may not fit the device
    judge = load_judge(c.judge, c.phrases)
    for part, texts in zip(parts, answered, strict=True):
        # The judge sees the plain requests: how they were dressed up must not sway it too.
        verdicts = judge.judge([run.data.harmful[index].prompt for index in part.indices], texts)
        own = map(VARIANTS[part.what].own, texts)  # else nothing after a beginning would pass for an answer
        yield [[judge.label, verdict.value, is_degenerate(text)] for verdict, text in zip(verdicts, own, strict=True)]


def _answers(run: Run, name: str, folder: Path, parts: list[Part]) -> Iterator[list[str]]:
    """The answers to each part's requests, asked as its variant does."""
    c = run.config.evaluation
    model, tokenizer = load_model(folder).eval(), load_tokenizer(folder)
    length = c.max_new_tokens if c.judge.name == "phrases" else c.judge.tokens
    with stage(f"judge {name}", len(parts)) as bar:
        for part in parts:
            yield answers(
                model,
                tokenizer,
                [run.data.harmful[index] for index in part.indices],
                VARIANTS[part.what],
                max_new_tokens=length,
                batch_size=c.batch_size,
            )
            bar.advance()


def _settings(config: JudgeConfig) -> dict[str, Any]:
    """What verdicts depend on: not how a server is reached."""
    settings = asdict(config)
    endpoint = settings.pop("endpoint")
    settings.pop("batch_size")
    if config.prompt is not None:
        through_prompt(Path(config.prompt))  # which says what is wrong with the file
        settings["prompt"] = hashlib.sha256(Path(config.prompt).read_bytes()).hexdigest()[:16]
    return {**settings, "url": endpoint["url"], "options": endpoint["options"]}
