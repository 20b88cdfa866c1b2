"""Measuring a model while it trains, so that training goes on as if nothing had happened."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule

from neurofreeze.config.schema import EvaluationConfig
from neurofreeze.data.examples import Example
from neurofreeze.evaluation.generation import openings
from neurofreeze.evaluation.likelihood import refusal_margins
from neurofreeze.evaluation.phrases import phrase_list


class Probes:
    """A few harmful requests: the margin by which a model refuses them, and how many it refuses.

    Args:
        examples: the requests.
        tokenizer: of the model.
        config: phrase list, length of openings and batch size.
        refusals: also generate openings and count refusals.
    """

    def __init__(
        self, examples: Sequence[Example], tokenizer: Any, config: EvaluationConfig, *, refusals: bool = True
    ) -> None:
        self.examples = examples
        self.tokenizer = tokenizer
        self.config = config
        self.refusals = refusals

    def measure(self, model: Any) -> dict[str, Any]:
        """Refusal margin in nats, and refusals as [count, total] with their rate. Collective under sharding.

        Every rank runs the same requests, for what the ranks gather for a forward pass must be the same.
        """
        with undisturbed(model):
            margins = refusal_margins(model, self.tokenizer, self.examples, self.config.batch_size)
            found: dict[str, Any] = {"refusal_margin": sum(margins) / len(margins)}
            if self.refusals:
                texts = openings(
                    model,
                    self.tokenizer,
                    self.examples,
                    max_new_tokens=self.config.max_new_tokens,
                    batch_size=self.config.batch_size,
                )
                count = sum(map(phrase_list(self.config.phrases).is_refusal, texts))
                found |= {"refusal_rate": count / len(texts), "refusals": [count, len(texts)]}
        return found


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Evaluation mode and no gradients; after the block modes, random states and shards are as before."""
    training = [module for module in model.modules() if module.training]
    cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    states = random.getstate(), np.random.get_state()
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=cuda):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for module in training:
            module.training = True
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # the outermost keeps what it gathered until a backward pass, which does not come
