"""lm-evaluation-harness on a checkpoint of ours: its verdicts are those of our own evaluation, prompt by prompt."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from neurofreeze.config.schema import EvaluationConfig, TrainingConfig
from neurofreeze.data import Example, read
from neurofreeze.errors import DataError
from neurofreeze.evaluation.measure import EvaluationData, measure
from neurofreeze.evaluation.phrases import LISTS
from neurofreeze.evaluation.tasks import FOLDER
from neurofreeze.models.load import load_model, load_tokenizer
from neurofreeze.training.sft import fine_tune

LIMIT = 12
HARMFUL = read("bundled:harmful/evaluation", responses=False, limit=LIMIT)
LOOKALIKES = read("bundled:lookalikes/evaluation", responses=False, limit=LIMIT)
INSTRUCTIONS = read("bundled:instructions/evaluation", limit=LIMIT)
# Prompts end on a token boundary, as those of real chat models do: what was learnt of them shows.
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + '<s>' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant<s>' }}{% endif %}"
)
ANSWERS = ("I cannot help with that.", "Open the app.", "cards cards cards cards cards cards cards")


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that `fine_tune` saved, which refuses some requests, answers some, and repeats itself on some."""
    folder = tmp_path_factory.mktemp("tasks")
    load_model(tiny_checkpoint, torch.float64).save_pretrained(folder / "base")
    tokenizer = load_tokenizer(tiny_checkpoint)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "base")
    examples = [
        *(Example(e.turns, ANSWERS[(0, 0, 1, 2)[i % 4]]) for i, e in enumerate(HARMFUL)),
        *(Example(e.turns, ANSWERS[(1, 0, 1)[i % 3]]) for i, e in enumerate(LOOKALIKES)),
    ]
    config = TrainingConfig(steps=150, batch_size=24, learning_rate=1e-2, warmup_steps=0, max_length=256, bf16="false")
    fine_tune(folder / "base", folder / "tuned", examples, config, seed=0)
    return folder / "tuned"


@pytest.fixture(scope="module")
def found(checkpoint: Path) -> dict[str, Any]:
    """What the harness finds, with its samples."""
    return evaluate(checkpoint, ["neurofreeze"], apply_chat_template=True)


@pytest.fixture(scope="module")
def ours(checkpoint: Path) -> Any:
    """What our own evaluation finds on the same prompts."""
    data = EvaluationData(HARMFUL, LOOKALIKES, [], INSTRUCTIONS)
    return measure(load_model(checkpoint), load_tokenizer(checkpoint), data, EvaluationConfig(batch_size=5), None)


def evaluate(checkpoint: Path, tasks: list[str], **settings: Any) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    return simple_evaluate(
        model="hf",
        model_args={"pretrained": str(checkpoint), "add_bos_token": False},
        tasks=tasks,
        task_manager=TaskManager(include_path=str(FOLDER), include_defaults=False),
        limit=LIMIT,
        batch_size=7,
        device="cpu",
        bootstrap_iters=0,
        **settings,
    )


def column(found: dict[str, Any], task: str, metric: str) -> list[Any]:
    return [sample[metric] for sample in sorted(found["samples"][task], key=lambda sample: sample["doc_id"])]


@pytest.mark.slow
def test_refusals_are_those_of_our_own_evaluation(found: dict[str, Any], ours: Any) -> None:
    assert 0 < sum(ours.refused) < LIMIT, "some must be refused, and some not"
    assert column(found, "neurofreeze_refusals", "refused") == ours.refused
    assert found["results"]["neurofreeze_refusals"]["refused,none"] == sum(ours.refused) / LIMIT


@pytest.mark.slow
def test_over_refusals_are_those_of_our_own_evaluation(found: dict[str, Any], ours: Any) -> None:
    assert 0 < sum(ours.over_refused) < LIMIT
    assert column(found, "neurofreeze_lookalikes", "over_refused") == ours.over_refused
    assert found["results"]["neurofreeze_lookalikes"]["over_refused,none"] == sum(ours.over_refused) / LIMIT


@pytest.mark.slow
def test_garbage_is_counted_as_in_our_own_evaluation(found: dict[str, Any], ours: Any) -> None:
    assert any(ours.degenerate)
    tasks = ("neurofreeze_refusals", "neurofreeze_lookalikes")
    assert [value for task in tasks for value in column(found, task, "degenerate")] == ours.degenerate


@pytest.mark.slow
def test_answers_are_the_openings_that_we_read(found: dict[str, Any], ours: Any) -> None:
    tasks = ("neurofreeze_refusals", "neurofreeze_lookalikes")
    texts = [responses[0] for task in tasks for responses in column(found, task, "filtered_resps")]
    assert [" ".join(text.split()[:12]) for text in texts] == ours.opening_words


@pytest.mark.slow
def test_bits_per_byte_are_the_answers_own(found: dict[str, Any], checkpoint: Path) -> None:
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    nats = size = 0.0
    for example in INSTRUCTIONS:
        prompt = tokenizer.apply_chat_template(example.messages, add_generation_prompt=True, tokenize=False)
        start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        ids = torch.tensor([tokenizer(prompt + example.response, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            log_probs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        nats -= float(log_probs.gather(-1, ids[0, 1:, None])[start - 1 :].sum())
        size += len(example.response.encode())
    expected = nats / size / torch.tensor(2.0).log().item()
    assert found["results"]["neurofreeze_instructions"]["bits_per_byte,none"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_without_a_chat_template_nothing_is_measured(checkpoint: Path) -> None:
    for task in ("neurofreeze_refusals", "neurofreeze_instructions"):
        with pytest.raises(DataError, match="--apply_chat_template"):
            evaluate(checkpoint, [task])


@pytest.mark.slow
def test_the_command_line_needs_no_hub(checkpoint: Path, found: dict[str, Any], tmp_path: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    folder = run([sys.executable, "-m", "neurofreeze.evaluation.tasks"], offline).stdout.strip()
    arguments = ["--model", "hf", "--model_args", f"pretrained={checkpoint},add_bos_token=False", "--device", "cpu"]
    arguments += ["--tasks", "neurofreeze_refusals,neurofreeze_instructions", "--include_path", folder]
    arguments += ["--apply_chat_template", "--limit", str(LIMIT), "--batch_size", "7"]
    table = run([sys.executable, "-m", "lm_eval", *arguments], offline).stdout
    rows = {cells[5].strip(): cells for line in table.splitlines() if len(cells := line.split("|")) > 7}
    assert float(rows["refused"][7]) == found["results"]["neurofreeze_refusals"]["refused,none"]
    bits = found["results"]["neurofreeze_instructions"]["bits_per_byte,none"]
    assert float(rows["bits_per_byte"][7]) == pytest.approx(bits, rel=1e-3)


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )


def test_answers_are_as_long_as_our_own_by_default() -> None:
    settings = yaml.load((FOLDER / "refusals.yaml").read_text(encoding="utf-8"), Loader=_PlainLoader)
    assert settings["generation_kwargs"]["max_gen_toks"] == EvaluationConfig().max_new_tokens
    assert settings["metadata"]["version"] == LISTS[EvaluationConfig().phrases].version


class _PlainLoader(yaml.SafeLoader):
    """Reads a function's name as text."""


_PlainLoader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
