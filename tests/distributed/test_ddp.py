"""The guarantee under DistributedDataParallel, on gloo ranks of this machine, against one process in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from neurofreeze import freeze
from neurofreeze.testing import run_distributed_test
from tests import reference, tiny
from tests.reference import assert_frozen, assert_no_moments, mask_for

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 4
ACCUMULATION = 2


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    # A large eps: Adam divides by the root of moments, which would blow up the rounding of gradients that are zero
    # but for rounding (those of key biases), and ranks add in another order than one process does.
    return torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1, eps=1e-2)


def train_and_compare(options: dict[str, Any]) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    data = reference.batches(STEPS, ACCUMULATION, size=(ranks, 7))
    model, alone = tiny.model("llama"), tiny.model("llama")
    mask = mask_for(model)
    options = dict(options)
    if options.pop("checkpointing", False):
        model.train().gradient_checkpointing_enable()
    if options.pop("compiled", False):
        model.compile(backend="aot_eager")
    frozen, start = reference.dense(model, mask), reference.weights(model)
    expected_norms = reference.train_frozen(alone, optimizer_of(alone), data, frozen)

    wrapped = DistributedDataParallel(model, **options)
    optimizer = optimizer_of(wrapped)
    freezer = freeze(wrapped, optimizer, mask)
    assert freezer.engine.name == "ddp"
    norms = []
    for *unsynced, last in data:
        with wrapped.no_sync():
            for ids in unsynced:
                (wrapped(input_ids=ids[rank, None], labels=ids[rank, None]).loss / ACCUMULATION).backward()
        (wrapped(input_ids=last[rank, None], labels=last[rank, None]).loss / ACCUMULATION).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(wrapped.parameters(), 0.5))
        optimizer.step()
        optimizer.zero_grad()

    assert_frozen(model, start, frozen)
    assert_no_moments(model, optimizer, frozen)
    freezer.check()
    for (name, p), q in zip(model.named_parameters(), alone.parameters(), strict=True):
        assert (p - q).abs().max() <= 1e-12, name
        assert frozen[name].all() or not torch.equal(p, start[name]), name
    for norm, expected in zip(norms, expected_norms, strict=True):
        assert abs(norm - expected) <= 1e-12


def test_two_ranks_train_as_one_process_does() -> None:
    run_distributed_test(train_and_compare, world_size=2, args=({},))


# What the table of engines says -> options of DistributedDataParallel, or of the model in it.
OPTIONS: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "gradient_as_bucket_view": {"gradient_as_bucket_view": True},
    "find_unused_parameters": {"find_unused_parameters": True},
    "gradient checkpointing": {"checkpointing": True},
    "torch.compile": {"compiled": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_four_ranks_train_as_one_process_does(options: dict[str, Any]) -> None:
    run_distributed_test(train_and_compare, world_size=4, args=(options,))


# What goes wrong on one rank must stop all. Each of these runs on two ranks, which tell what they raised.


def ready(seed: int = 1) -> tuple[Any, Any, Any]:
    model = tiny.model("llama")
    wrapped = DistributedDataParallel(model)
    return wrapped, optimizer_of(wrapped), mask_for(model, seed=seed)


def all_is_well() -> None:
    freeze(*ready()).detach()


def masks_differ() -> None:
    freeze(*ready(seed=dist.get_rank()))


def one_optimizer_lacks_a_parameter() -> None:
    model, optimizer, mask = ready()
    if dist.get_rank() == 1:
        layer = model.module.model.layers[0].mlp.up_proj
        optimizer.param_groups[0]["params"] = [p for p in model.parameters() if p is not layer.weight]
    freeze(model, optimizer, mask)


def frozen_weights_differ() -> None:
    model, optimizer, mask = ready()
    if dist.get_rank() == 1:
        frozen = reference.dense(model.module, mask)["model.layers.0.mlp.up_proj.weight"]
        with torch.no_grad():
            model.module.model.layers[0].mlp.up_proj.weight[frozen] += 1
    freeze(model, optimizer, mask)


def one_rank_writes_a_frozen_weight() -> None:
    model, optimizer, mask = ready()
    freezer = freeze(model, optimizer, mask)
    if dist.get_rank() == 1:
        frozen = reference.dense(model.module, mask)["model.layers.1.mlp.down_proj.weight"]
        with torch.no_grad():
            model.module.model.layers[1].mlp.down_proj.weight[frozen] += 1
    freezer.check()


def one_rank_has_no_mask() -> None:
    model, optimizer, mask = ready()
    freeze(model, optimizer, mask if dist.get_rank() == 0 else None)


SCENARIOS: list[Callable[[], None]] = [
    all_is_well,
    masks_differ,
    one_optimizer_lacks_a_parameter,
    frozen_weights_differ,
    one_rank_writes_a_frozen_weight,
    one_rank_has_no_mask,
]


def what_raises(scenario: Callable[[], None]) -> str:
    try:
        scenario()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def tell_what_each_raises(folder: str) -> None:
    raised = {scenario.__name__: what_raises(scenario) for scenario in SCENARIOS}
    Path(folder, f"{dist.get_rank()}.json").write_text(json.dumps(raised))


@pytest.fixture(scope="module")
def raised(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """For each of two ranks: scenario -> what it raised."""
    folder = tmp_path_factory.mktemp("ranks")
    run_distributed_test(tell_what_each_raises, world_size=2, args=(str(folder),))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_equal_ranks_freeze_check_and_detach(raised: list[dict[str, str]]) -> None:
    assert [rank["all_is_well"] for rank in raised] == ["nothing", "nothing"]


def test_different_masks_are_refused_on_every_rank(raised: list[dict[str, str]]) -> None:
    for rank in raised:
        assert rank["masks_differ"].startswith("FreezeError: the mask differs between ranks (rank 0: ")


def test_a_failure_on_one_rank_is_raised_on_every_rank(raised: list[dict[str, str]]) -> None:
    expected = "model.layers.0.mlp.up_proj.weight is in the mask but in no parameter group of AdamW"
    found = [rank["one_optimizer_lacks_a_parameter"] for rank in raised]
    assert found[0].startswith(f"FreezeError: freeze failed on rank 1: {expected}")
    assert found[1].startswith(f"FreezeError: {expected}")


def test_different_frozen_weights_are_refused_on_every_rank(raised: list[dict[str, str]]) -> None:
    for rank in raised:
        assert rank["frozen_weights_differ"].startswith(
            "FreezeError: the fingerprint of the frozen weights differs between ranks"
        )


def test_a_frozen_weight_changed_on_one_rank_is_noticed_on_every_rank(raised: list[dict[str, str]]) -> None:
    for rank in raised:
        assert rank["one_rank_writes_a_frozen_weight"].startswith(
            "FreezeError: the fingerprint of the frozen weights differs between ranks"
        )


def test_a_mask_missing_on_one_rank_is_refused_on_every_rank(raised: list[dict[str, str]]) -> None:
    found = [rank["one_rank_has_no_mask"] for rank in raised]
    assert found[0].startswith("FreezeError: freeze failed on rank 1: freeze() was given no mask")
    assert found[1].startswith("MaskError: freeze() was given no mask")
