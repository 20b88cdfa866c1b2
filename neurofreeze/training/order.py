"""The order of examples: the same on any number of ranks, to the end of an epoch.

accelerate fills the last batch of an epoch up with examples from its beginning, so that each rank has as many; those
would count twice. Here it is filled up with an example that has no answer, and so no loss.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset, concatenate_datasets
from torch.utils.data import Sampler

_IGNORED = -100  # a label without loss, for transformers


class FilledEpochs(Sampler[int]):
    """Shuffled indices of the examples, as one process has them, then that of the filler until batches are whole.

    Args:
        examples: how many there are; the filler comes after them.
        batch_size: of all ranks together.
        seed: of the order.
    """

    def __init__(self, examples: int, batch_size: int, seed: int) -> None:
        self._shuffled = SeedableRandomSampler(range(examples), generator=torch.Generator(), data_seed=seed)
        self._filler = [examples] * (-examples % batch_size)

    def __iter__(self) -> Iterator[int]:
        yield from self._shuffled
        yield from self._filler

    def __len__(self) -> int:
        return len(self._shuffled) + len(self._filler)

    def set_epoch(self, epoch: int) -> None:
        """Each epoch has an order of its own."""
        self._shuffled.set_epoch(epoch)


def with_filler(tokenized: Dataset) -> Dataset:
    """The data with one more example, a copy of the first without labels to learn from."""
    first = tokenized[0]
    filler = {**first, "labels": [_IGNORED] * len(first["labels"])}
    return concatenate_datasets([tokenized, Dataset.from_list([filler], features=tokenized.features)])
