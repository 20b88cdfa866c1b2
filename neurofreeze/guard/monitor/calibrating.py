"""Making a reference: which neurons are watched, and their activations on calibration prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from neurofreeze.data.batches import pad, prompt_ids, template_record
from neurofreeze.data.examples import Example, digest
from neurofreeze.errors import MaskError
from neurofreeze.guard.monitor.pooling import Pooling
from neurofreeze.guard.monitor.reference import Array, Reference
from neurofreeze.guard.monitor.watching import watching
from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap
from neurofreeze.strategies.observing import forward
from neurofreeze.strategies.passes import evaluating
from neurofreeze.strategies.scores import kinds
from neurofreeze.verification import loaded_fingerprint


def top_scored(mask: NeuronMask, neuron_map: NeuronMap, most: int) -> NeuronMask:
    """The neurons of `mask` with the highest scores, about `most` in all: the same share of each kind's.

    Raises:
        MaskError: if the mask has more neurons and no scores, or none at all.
    """
    if not mask.count:
        raise MaskError("the mask chooses no neuron, so there is nothing to watch; give one that does")
    if mask.count <= most:
        return mask
    if mask.scores is None:
        raise MaskError(
            f"the mask has {mask.count:,} neurons and no scores by which {most} could be chosen; select fewer "
            f"neurons (a fraction of {most / mask.total:.2g}), give a mask with all scores, or watch all {mask.count:,}"
        )
    bits = {name: np.zeros_like(own) for name, own in mask.bits.items()}
    for names in kinds(neuron_map).values():
        chosen = np.concatenate([mask.bits[name] for name in names])
        scores = np.where(chosen, np.concatenate([mask.scores[name] for name in names]), -np.inf)
        count = round(chosen.sum() * most / mask.count)
        own = np.zeros(len(chosen), dtype=bool)
        own[np.argsort(-scores, kind="stable")[:count]] = True
        ends = np.cumsum([len(mask.bits[name]) for name in names])[:-1]
        bits |= dict(zip(names, np.split(own, ends), strict=True))
    strategy = {"name": "top_scored", "most": most, "of": mask.config.strategy}
    return NeuronMask(bits, replace(mask.config, fingerprint=None, rest=(), strategy=strategy))


def calibrate(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    mask: NeuronMask,
    *,
    most: int = 64,
    pooling: Pooling = "mean",
    batch_size: int = 16,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> Reference:
    """The reference of a model's safety neurons on benign prompts; answers are not read.

    Args:
        model: a transformers causal language model.
        tokenizer: with a chat template.
        examples: benign prompts of the kind that the model will serve, at least 40. Half of them make the statistics,
            the other half the thresholds.
        mask: the safety neurons.
        most: how many of them to watch, by their scores. The covariance needs several prompts a neuron.
        pooling: over the tokens of a prompt.
        batch_size: prompts a batch.
        seed: of the halves.
        progress: called after each batch.

    Raises:
        DataError: if there are too few prompts, or the tokenizer has no chat template.
        MaskError: if the mask is for another model, or chooses none, or too many without scores.
    """
    neuron_map = NeuronMap.of(model, mask.config.granularity)  # type: ignore[arg-type]
    mask.check(neuron_map)
    watched = top_scored(mask, neuron_map, most)
    watched = watched.with_config(fingerprint=loaded_fingerprint(model, watched))
    found = list(observations(model, tokenizer, examples, watched, pooling, batch_size, progress))
    reference = Reference.fit(np.concatenate(found), watched, pooling, seed=seed)
    source = {"digest": digest(examples), "chat_template": template_record(tokenizer)}
    return replace(reference, made_of={**reference.made_of, **source})


@torch.no_grad()
def observations(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    mask: NeuronMask,
    pooling: Pooling,
    batch_size: int = 16,
    progress: Callable[[], None] = lambda: None,
) -> Iterator[Array]:
    """The watched neurons' activations on each prompt, float64 [prompts of a batch, neurons], in the prompts' order."""
    rows: list[Array] = []
    with evaluating(model), watching(model, mask, pooling, rows.append):
        for start in range(0, len(examples), batch_size):
            tokens = [prompt_ids(tokenizer, example) for example in examples[start : start + batch_size]]
            for batch in pad([(ids, len(ids)) for ids in tokens], tokenizer.pad_token_id, batch_size):
                forward(model, batch)
                found = rows.pop()
                yield found[np.argsort(batch.indices)]
            progress()
