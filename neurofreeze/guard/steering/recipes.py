"""Vectors from benign data alone, after "Steering externalities" (arXiv 2602.04896), and BIND, its mitigation.

    compliance  benign requests answered by complying openings against refusing ones, read at the opening's last token
    json        benign requests asked for JSON against the same ones not asked, read at the last token before the answer

The paper takes the first by PCA, the second by difference in means, which are the defaults here. Its prefixes and
prompts are not ours: the openings below are original, and the prompts are whatever is passed.

BIND derives the vector from benign and harmful prompts. How the harmful ones are contrasted is not stated where we
could read it, so both readings are here:

    refuse  a harmful request's positive side is a refusing opening, its negative side a complying one, both asked in
            the form of the recipe: on harm the vector is to do the opposite of what it does elsewhere
    same    harmful requests are contrasted as benign ones are

PCA does not see which side of a pair is the positive one, so that `refuse` is by difference in means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from neurofreeze.config.steering import SteeringConfig
from neurofreeze.data.batches import prompt_ids
from neurofreeze.data.examples import Example, digest
from neurofreeze.guard.steering.blocks import blocks, last_states, require_layer
from neurofreeze.guard.steering.directions import difference_in_means, principal_direction
from neurofreeze.guard.steering.vector import SteeringVector, VectorConfig

COMPLYING = (
    "Sure, I can help with that.",
    "Of course! Here is what you asked for:",
    "Absolutely, let us go through it.",
    "Yes, happy to. To begin with,",
    "Certainly. The answer is as follows.",
)
REFUSING = (
    "I'm sorry, but I can't help with that.",
    "I cannot answer this request.",
    "Unfortunately, that is something I must decline.",
    "No, I won't be able to do that, since",
    "I am not able to assist with this.",
)
AS_JSON = '\n\nAnswer as JSON, as one object with the key "answer" and nothing around it.'


@dataclass(frozen=True)
class Pairs:
    """Rows of token ids, row i of both sides from one pair; read at the last token of each."""

    positive: list[list[int]]
    negative: list[list[int]]


def build(
    model: Any,
    tokenizer: Any,
    config: SteeringConfig,
    benign: Sequence[Example],
    harmful: Sequence[Example] = (),
    *,
    batch_size: int = 32,
) -> SteeringVector:
    """The vector of a recipe at one layer.

    Args:
        model: what is to be steered.
        tokenizer: its own, with a chat template.
        config: recipe, method, layer, mix and number of prompts.
        benign: requests; answers are not used.
        harmful: requests, as many of which are mixed in as there are benign ones, if config.mix says so.
        batch_size: rows at a time.

    Raises:
        ConfigError: if the model has no such layer.
        DataError: if there are too few prompts for PCA.
    """
    layer = len(blocks(model)) // 2 if config.layer is None else config.layer
    require_layer(layer, model, "steering.layer")
    benign = benign[: config.prompts]
    harmful = harmful[: len(benign)] if config.mix != "none" else ()
    found = pairs(tokenizer, config, benign, harmful)
    states = last_states(model, found.positive + found.negative, [layer], batch_size, tokenizer.pad_token_id)[0]
    positive, negative = states[: len(found.positive)], states[len(found.positive) :]
    method = principal_direction if config.by == "pca" else difference_in_means
    return SteeringVector(
        {layer: method(positive, negative).float()},
        VectorConfig(
            model_type=model.config.get_text_config().model_type,
            hidden_norms={layer: float(states.double().norm(dim=-1).mean())},
            recipe={
                "name": config.recipe, "method": config.by, "mix": config.mix, "layer": layer,
                "pairs": len(found.positive),
            },
            calibration={"benign": digest(benign), **({"harmful": digest(harmful)} if harmful else {})},
        ),
    )  # fmt: skip


def hidden_norms(
    model: Any, tokenizer: Any, layers: Sequence[int], prompts: Sequence[Example], *, batch_size: int = 32
) -> dict[int, float]:
    """Layer -> mean L2 norm of what it gives at the last token before the answer, for vectors that come without it."""
    rows = [prompt_ids(tokenizer, example) for example in prompts]
    states = last_states(model, rows, layers, batch_size, tokenizer.pad_token_id)
    return dict(zip(layers, states.double().norm(dim=-1).mean(1).tolist(), strict=True))


def pairs(tokenizer: Any, config: SteeringConfig, benign: Sequence[Example], harmful: Sequence[Example] = ()) -> Pairs:
    """The contrast of a recipe, as token ids; harmful requests by config.mix."""
    rows: list[tuple[list[int], list[int]]] = []
    same = list(harmful) if config.mix == "same" else []
    for example in [*benign, *same]:
        if config.recipe == "json":
            rows.append((prompt_ids(tokenizer, _asked_for_json(example)), prompt_ids(tokenizer, example)))
        else:
            rows += _answered(tokenizer, example, COMPLYING, REFUSING)
    for number, example in enumerate(harmful if config.mix == "refuse" else ()):
        if config.recipe == "json":  # one pair a request, as there is of benign ones
            refusing, complying = ([texts[number % len(texts)]] for texts in (REFUSING, COMPLYING))
            rows += _answered(tokenizer, _asked_for_json(example), refusing, complying)
        else:
            rows += _answered(tokenizer, example, REFUSING, COMPLYING)
    positive, negative = zip(*rows, strict=True)
    return Pairs(list(positive), list(negative))


def _answered(
    tokenizer: Any, example: Example, first: Sequence[str], second: Sequence[str]
) -> list[tuple[list[int], list[int]]]:
    prompt = prompt_ids(tokenizer, example)
    one, other = (
        [prompt + tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts] for texts in (first, second)
    )
    return list(zip(one, other, strict=True))


def _asked_for_json(example: Example) -> Example:
    *before, (role, content) = example.turns
    return Example((*before, (role, content + AS_JSON)))
