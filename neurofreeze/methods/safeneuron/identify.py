"""Safety neurons: those with a large effect size (ES), together with those whose activation shifts (SAS)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from neurofreeze.data.examples import Example
from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import Granularity
from neurofreeze.strategies import select_all
from neurofreeze.strategies.contrast import Contrast


@dataclass(frozen=True, eq=False)
class SafetyNeurons:
    """What was found in one model.

    Attributes:
        es: neurons with Cohen's d of unsafe against safe prompts above tau_es.
        sas: neurons whose mean difference has a z-score within its layer above tau_sas, and is positive.
        mask: their union.
    """

    es: NeuronMask
    sas: NeuronMask
    mask: NeuronMask

    @property
    def counts(self) -> dict[str, int]:
        """How many neurons are in ES, in SAS, in both, and in the union."""
        both = self.es.count + self.sas.count - self.mask.count
        return {"es": self.es.count, "sas": self.sas.count, "both": both, "neurons": self.mask.count}


def identify(
    model: Any,
    tokenizer: Any,
    sets: Mapping[str, Sequence[Example]],
    contrast: Contrast,
    *,
    granularity: Granularity = "head",
    batch_size: int = 8,
    max_length: int | None = 512,
    progress: Callable[[], None] | None = None,
) -> SafetyNeurons:
    """Find the safety neurons of `model`, in one forward pass of each set.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        sets: "safety", unsafe prompts, and "utility", safe ones.
        contrast: thresholds, pooling and positions; its own statistic does not matter.
        granularity: what an attention neuron is, "head" or "channel".
        batch_size: conversations a batch.
        max_length: tokens kept of each conversation.
        progress: called after each batch.

    Raises:
        DataError: if a set has fewer than two prompts.
    """
    scores = select_all(
        model,
        tokenizer,
        sets,
        [replace(contrast, statistic=statistic) for statistic in ("es", "sas")],
        granularity=granularity,
        batch_size=batch_size,
        max_length=max_length,
        progress=progress,
    )
    es, sas = (found.above(tau) for found, tau in zip(scores, (contrast.tau_es, contrast.tau_sas), strict=True))
    strategy = asdict(replace(contrast, statistic="union", name="safeneuron"))
    return SafetyNeurons(es, sas, (es | sas).with_config(strategy=strategy))
