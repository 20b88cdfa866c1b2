"""A checkpoint evaluated without some of its neurons, mask by mask: shared among ranks, going on where it stopped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from neurofreeze.checkpoints import stamps
from neurofreeze.console import stage
from neurofreeze.evaluation.ablation import ablated
from neurofreeze.evaluation.measure import EvaluationData, Outcomes, Part, gathered, plan, values
from neurofreeze.evaluation.sharing import shared
from neurofreeze.mask import NeuronMask
from neurofreeze.models.load import load_model, load_tokenizer
from neurofreeze.stages.context import Run


class PrunedPart(NamedTuple):
    """A batch of prompts to measure one thing of, without the neurons of the mask of this name."""

    mask: str
    what: str
    indices: list[int]


def outcomes_without(
    run: Run,
    name: str,
    settings: dict[str, Any],
    folder: Path,
    masks: Mapping[str, NeuronMask | None],
    data: EvaluationData,
) -> dict[str, Outcomes]:
    """The outcomes under each mask's name, the same on every rank. Collective.

    Args:
        run: whose folder keeps what is done, until all is.
        name: of the stage.
        settings: all that the outcomes depend on beside the weights.
        folder: the checkpoint.
        masks: the neurons to go without; None for the whole model.
        data: the evaluation sets.
    """
    config, max_length = run.config.evaluation, run.config.training.max_length

    def work(parts: list[PrunedPart]) -> Iterator[list[Any]]:
        model, tokenizer = load_model(folder).eval(), load_tokenizer(folder)
        with stage(name, len(parts)) as bar:
            for mask, what, indices in parts:
                pruned = masks[mask]
                with nullcontext() if pruned is None else ablated(model, pruned):
                    found = values(model, tokenizer, data, Part(what, indices), config, max_length)
                yield found
                bar.advance()

    def parts() -> list[PrunedPart]:
        whole = plan(load_tokenizer(folder), data, config, max_length)
        return [PrunedPart(mask, *part) for mask in masks for part in whole]

    digests = {label: None if mask is None else mask.digest for label, mask in masks.items()}
    done = shared(name, run.folder.unfinished(name), [settings, digests, stamps(folder)], parts, work)
    return {
        label: gathered(data, ((Part(part.what, part.indices), found) for part, found in done if part.mask == label))
        for label in masks
    }
