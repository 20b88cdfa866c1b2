"""Joint: the rows of objectives run in the same forward pass as a micro-batch, whichever engine shares the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from neurofreeze.distributed import rank, world_size
from neurofreeze.errors import ConfigError
from neurofreeze.training.objectives.base import Row, Terms

_IGNORED = -100  # a label without loss, for transformers
_FILL = {"input_ids": 0, "attention_mask": 0, "labels": _IGNORED}


class Placed(NamedTuple):
    """A row of a joined batch: whose it is, where it is, and what share of its objective's mean it makes."""

    terms: Terms
    row: Row
    position: int
    share: float


class Joint:
    """Several objectives beside one training loss.

    Ranks share the rows of a micro-batch. Engines average gradients over ranks, so each rank's part counts as many
    times as there are ranks, and the mean is that of one process.
    """

    def __init__(self, objectives: Sequence[Terms]) -> None:
        self.objectives = list(objectives)

    def join(self, inputs: dict[str, Any], micro_batch: int) -> tuple[dict[str, Any], list[Placed]]:
        """A padded micro-batch with the rows of this rank below it, which have no labels, and where they are.

        Raises:
            ConfigError: if the batch is packed, so that rows are not conversations.
        """
        if set(inputs) - {"use_cache"} != set(_FILL):
            raise ConfigError(
                f"replay and anchor need padded batches of {', '.join(_FILL)}, the trainer's hold {', '.join(inputs)}"
            )
        position, placed = len(inputs["input_ids"]), []
        for terms in self.objectives:
            rows = terms.rows(micro_batch)
            for row in rows[rank() :: world_size()]:
                placed.append(Placed(terms, row, position, world_size() / len(rows)))
                position += 1
        return {**inputs, **_below(inputs, [each.row for each in placed])}, placed

    def losses(self, logits: torch.Tensor, placed: Sequence[Placed]) -> dict[str, torch.Tensor]:
        """The part of each objective's mean on this rank, by name, in nats; logits are [rows, length, vocabulary]."""
        # A zero that comes from the logits: ZeRO-3 ends training where only some ranks go back through them.
        nothing = logits[:0].float().sum()
        found = {terms.name: nothing for terms in self.objectives}
        for terms, row, position, share in placed:
            predicting = logits[position, row.start - 1 : len(row.ids) - 1].float()
            found[terms.name] = found[terms.name] + share * terms.loss(row, predicting)
        return found

    def weighted(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """Their weighted sum."""
        return torch.stack([terms.weight * losses[terms.name] for terms in self.objectives]).sum()


def _below(inputs: dict[str, Any], rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    batch = inputs["input_ids"]
    length = max([batch.shape[1], *(len(row.ids) for row in rows)])
    found = {}
    for key, fill in _FILL.items():
        above = F.pad(inputs[key], (0, length - batch.shape[1]), value=fill)
        below = torch.full((len(rows), length), fill, dtype=above.dtype, device=above.device)
        for index, row in enumerate(rows):
            if key != "labels":
                below[index, : len(row.ids)] = torch.tensor(row.ids) if key == "input_ids" else 1
        found[key] = torch.cat([above, below])
    return found
