"""The order of examples on several ranks: that of one process, with what fills up an epoch counted nowhere."""

from __future__ import annotations

from itertools import chain

from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from datasets import Dataset
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from neurofreeze.training.order import FilledEpochs, with_filler

EXAMPLES, BATCH, SEED = 22, 8, 3


def of_one_process(epoch: int) -> list[int]:
    """As the trainer has accelerate prepare it."""
    data = list(range(EXAMPLES))
    loader = DataLoader(data, batch_size=BATCH, sampler=RandomSampler(data), collate_fn=list)
    prepared = prepare_data_loader(loader, put_on_device=False, use_seedable_sampler=True, data_seed=SEED)
    prepared.set_epoch(epoch)
    return [index for batch in prepared for index in batch]


def of_ranks(epoch: int, ranks: int) -> list[list[list[int]]]:
    """The batches of each rank."""
    found = []
    for rank in range(ranks):
        sampler = FilledEpochs(EXAMPLES, BATCH, SEED)
        sampler.set_epoch(epoch)
        batches = BatchSampler(sampler, BATCH // ranks, drop_last=False)
        found.append(list(BatchSamplerShard(batches, ranks, rank)))
    return found


def test_every_step_has_the_examples_that_one_process_has() -> None:
    for epoch in (0, 1):
        for ranks in (2, 4):
            steps = [list(chain(*parts)) for parts in zip(*of_ranks(epoch, ranks), strict=True)]
            assert [len(step) for step in steps] == [BATCH] * 3
            whole = [index for step in steps for index in step]
            assert whole[:EXAMPLES] == of_one_process(epoch)
            assert whole[EXAMPLES:] == [EXAMPLES] * 2, "only the filler fills up"


def test_epochs_differ() -> None:
    assert of_ranks(0, 2) != of_ranks(1, 2)


def test_an_epoch_of_whole_batches_is_not_filled_up() -> None:
    assert list(FilledEpochs(16, 8, SEED)) != list(range(16))
    assert sorted(FilledEpochs(16, 8, SEED)) == list(range(16))
    assert [len(FilledEpochs(count, 8, SEED)) for count in (1, 8, 9)] == [8, 8, 16]


def test_the_filler_has_nothing_to_learn_from() -> None:
    data = Dataset.from_list([{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [8]}])
    filled = with_filler(data)
    assert filled[:2] == data[:]
    assert filled[2] == {"input_ids": [5, 6, 7], "labels": [-100, -100, -100]}
