"""An evaluation on two ranks: each does its part, all have the outcome of one process, and one that fails fails all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neurofreeze.config.schema import EvaluationConfig
from neurofreeze.data import read
from neurofreeze.distributed import every_rank, gather, rank, world_size
from neurofreeze.errors import DataError, OtherRankError
from neurofreeze.evaluation.measure import EvaluationData, Part, gathered, measure, plan, values
from neurofreeze.evaluation.sharing import shared
from neurofreeze.models.load import load_model, load_tokenizer
from neurofreeze.testing import run_distributed_test

pytestmark = pytest.mark.slow

CONFIG = EvaluationConfig(max_new_tokens=4, batch_size=2)


def data() -> EvaluationData:
    return EvaluationData(
        harmful=read("bundled:harmful/evaluation", responses=False, limit=7),
        lookalikes=read("bundled:lookalikes/evaluation", responses=False, limit=4),
        domain=read("bundled:retail_bank/evaluation", limit=3),
        general=read("bundled:instructions/evaluation", limit=3),
    )


def evaluate(base: Path, folder: Path) -> None:
    sets, tokenizer, model = data(), load_tokenizer(base), load_model(base).eval()
    expected = measure(model, tokenizer, sets, CONFIG, 64)
    parts = plan(tokenizer, sets, CONFIG, 64)
    done: list[Part] = []
    answered: list[int] = []
    generate = model.generate

    def counting(*args: Any, **options: Any) -> Any:
        answered.append(len(options["input_ids"]))
        return generate(*args, **options)

    model.generate = counting

    def work(mine: list[Part]) -> Iterator[list[Any]]:
        assert world_size() == 1, "a rank works as if it were alone"
        for part in mine:
            if len(done) == 3 and rank() == 1:
                raise DataError("rank 1 reads no further")
            done.append(part)
            yield values(model, tokenizer, sets, part, CONFIG, 64)

    def share() -> list[tuple[Part, list[Any]]]:
        return shared("evaluate", folder, "settings", lambda: plan(tokenizer, sets, CONFIG, 64), work)

    with pytest.raises(DataError if rank() == 1 else OtherRankError, match="rank 1 reads no further"):
        share()
    assert done == (parts[0::2] if rank() == 0 else parts[1:6:2]), "the ranks take turns"
    assert gather(world_size()) == [2, 2], "and go on together"

    kept, done[:] = gather(list(done)), []
    rest = [part for part in parts if part not in kept[0] + kept[1]]
    found = gathered(sets, share())
    assert done == rest[rank() :: 2], "what either rank had done is not done again"
    assert found == expected, "bit for bit"
    assert gather(sum(answered)) == [2 + 2 + 2, 2 + 1 + 2], "of 7 harmful requests and 4 look-alikes"


def each_of_them() -> None:
    assert every_rank(lambda: (rank(), world_size())) == [(0, 1), (1, 1)]


def all_of_it(base: Path, folder: Path) -> None:
    each_of_them()
    evaluate(base, folder)


def test_ranks_share_an_evaluation(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run_distributed_test(all_of_it, args=(tiny_checkpoint, tmp_path / "unfinished"), timeout=120)
    assert not (tmp_path / "unfinished").exists()
