"""Going on from torch distributed checkpoints under FSDP2: four ranks, then two, then three."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor

from neurofreeze import FreezeError, NeuronMask, freeze
from neurofreeze.testing import run_distributed_test
from tests import reference, tiny
from tests.distributed.test_fsdp2 import adamw, full, layerwise
from tests.reference import mask_for

BATCHES = reference.batches(6)


class Everything:
    """Model and optimizer in the form that torch's own guide gives a checkpoint."""

    def __init__(self, model: Any, optimizer: torch.optim.Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def ready(mask_seed: int = 1) -> tuple[Any, Any, Any]:
    model = tiny.model("llama")
    mask = mask_for(model, seed=mask_seed)
    layerwise(model)
    optimizer = adamw(model)
    freezer = freeze(model, optimizer, mask)
    assert freezer.engine.name == "fsdp2"
    return model, optimizer, freezer


def leg(folder: str, load: str | None, steps: slice, save: str | None) -> None:
    model, optimizer, freezer = ready()
    # "freezer" comes before "training" in the order in which DCP loads, so the weights are still to come.
    state = {"freezer": freezer, "training": Everything(model, optimizer)}
    if load:
        dcp.load(state, checkpoint_id=str(Path(folder, load)))
    reference.train(model, optimizer, BATCHES[steps])
    freezer.check()
    if save:
        dcp.save(state, checkpoint_id=str(Path(folder, save)))
        return
    alone = tiny.model("llama")
    frozen, begun = reference.dense(alone, freezer.mask), reference.weights(alone)
    reference.train_frozen(alone, adamw(alone), BATCHES, frozen)
    for (name, p), q in zip(model.named_parameters(), alone.parameters(), strict=True):
        now = full(p.detach())
        assert torch.equal(reference.bits(now[frozen[name]]), reference.bits(begun[name][frozen[name]])), name
        assert (now - q).abs().max() <= 1e-12, name
        for moment in optimizer.state[p].values():
            if isinstance(moment, DTensor) and moment.shape == p.shape:
                assert not moment.full_tensor()[frozen[name]].any(), name


@pytest.mark.slow
def test_four_two_and_three_ranks_take_the_same_way_as_one_process(tmp_path: Path) -> None:
    run_distributed_test(leg, world_size=4, args=(str(tmp_path), None, slice(0, 2), "a"))
    run_distributed_test(leg, world_size=2, args=(str(tmp_path), "a", slice(2, 4), "b"))
    run_distributed_test(leg, world_size=3, args=(str(tmp_path), "b", slice(4, 6), None))


def refuse(folder: str) -> None:
    model, optimizer, freezer = ready()
    dcp.save({"freezer": freezer, "training": Everything(model, optimizer)}, checkpoint_id=folder)

    model, optimizer, freezer = ready(mask_seed=2)
    with pytest.raises(FreezeError, match="resume with the checkpoint's mask"):
        dcp.load({"freezer": freezer}, checkpoint_id=folder)

    # The right mask, but a checkpoint in which somebody else trained the frozen weights.
    model, optimizer, freezer = ready()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    dcp.save({"training": Everything(model, optimizer)}, checkpoint_id=f"{folder}-moved")
    model, optimizer, freezer = ready()
    dcp.load({"freezer": freezer}, checkpoint_id=folder)
    dcp.load({"training": Everything(model, optimizer)}, checkpoint_id=f"{folder}-moved")
    reference.backward(model, BATCHES[0])
    before = [full(p.detach()) for p in model.parameters()]
    with pytest.raises(FreezeError, match="frozen elements changed"):
        optimizer.step()
    for p, was in zip(model.parameters(), before, strict=True):
        assert torch.equal(full(p.detach()), was)


def test_another_mask_or_other_frozen_weights_are_refused_before_the_first_step(tmp_path: Path) -> None:
    run_distributed_test(refuse, world_size=2, args=(str(tmp_path / "saved"),))


def test_the_mask_comes_back_from_a_checkpoint_s_state() -> None:
    model = tiny.model("llama")
    mask = mask_for(model)
    state = freeze(model, adamw(model), mask).state_dict()
    assert NeuronMask.from_state_dict(state) == mask
