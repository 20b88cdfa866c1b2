"""Selective layers under DDP and FSDP2, on gloo ranks of this machine, against one process under a dense mask.

All cells of one world size run in one process group, which writes down what each one showed; the tests read that.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import neurofreeze as nf
from neurofreeze.testing import run_distributed_test
from tests import reference, tiny
from tests.distributed.test_fsdp2 import (
    checkpointed,
    compiled,
    full,
    hybrid,
    kept_gathered,
    layerwise,
    offloaded,
    shard_columns,
    shard_rows,
)
from tests.distributed.test_resume_fsdp2 import Everything
from tests.selective_layers.twins import Train, adamw, still

STEPS = 3
ROWS = 4  # of a micro-batch, shared out among the ranks
DATA = reference.batches(STEPS, accumulation=2, size=(ROWS, 7))


def ddp(model: Any) -> Any:
    return DistributedDataParallel(model)


def ddp_checkpointed(model: Any) -> Any:
    model.train().gradient_checkpointing_enable()
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def ddp_compiled(model: Any) -> Any:
    model.compile(backend="aot_eager")
    return DistributedDataParallel(model)


def mixed_precision(model: Any) -> None:
    layerwise(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))


def sgd(model: Any) -> torch.optim.Optimizer:
    trainable = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(trainable, lr=0.05, weight_decay=0.1, momentum=0.9)


@dataclass(frozen=True)
class Cell:
    """One way to train. With a fraction of 0.02 there are 3 neurons, fewer lines than ranks."""

    wrap: Callable[[Any], Any]
    train: Train = "unmasked"
    architecture: str = "llama"
    fraction: float = 0.4
    optimizer: Callable[[Any], torch.optim.Optimizer] = adamw
    dtype: torch.dtype = torch.float64

    def __str__(self) -> str:
        few = " few" if self.fraction < 0.1 else ""
        optimizer = "" if self.optimizer is adamw else f" {self.optimizer.__name__}"
        return f"{self.wrap.__name__} {self.architecture} {self.train}{few}{optimizer}"


CELLS = [
    *(Cell(wrap, train) for wrap in (ddp, shard_rows, kept_gathered) for train in ("masked", "unmasked")),
    *(Cell(wrap, "masked", fraction=0.02) for wrap in (ddp, shard_rows, shard_columns)),
    *(Cell(wrap, architecture=name) for wrap in (ddp, shard_rows) for name in ("mixtral", "gpt_oss", "phi3")),
    *(Cell(wrap) for wrap in (shard_columns, offloaded, checkpointed, compiled, ddp_checkpointed, ddp_compiled)),
    *(Cell(wrap, optimizer=sgd) for wrap in (ddp, shard_rows)),
    Cell(hybrid, "masked"),
    *(Cell(mixed_precision, train, dtype=torch.float32) for train in ("masked", "unmasked")),
]


def mine(ids: torch.Tensor) -> torch.Tensor:
    return ids.chunk(dist.get_world_size())[dist.get_rank()]


def mean_over_ranks(value: torch.Tensor) -> float:
    total = value.detach().double().clone()
    dist.all_reduce(total)
    return float(total / dist.get_world_size())


def train(model: Any, optimizer: Any, data: list[reference.Batches]) -> tuple[list[float], list[float]]:
    """Train on this rank's rows; the mean loss of each forward pass, and the norm before clipping at each step."""
    losses, norms = [], []
    for micro_batches in data:
        for ids in micro_batches:
            loss = model(input_ids=mine(ids), labels=mine(ids)).loss
            (loss / len(micro_batches)).backward()
            losses.append(mean_over_ranks(loss))
        norms.append(float(full(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5))))
        optimizer.step()
        optimizer.zero_grad()
    return losses, norms


def train_alone(model: Any, optimizer: Any, data: list[reference.Batches], frozen: reference.Dense) -> Any:
    losses: list[float] = []
    watching = model.register_forward_hook(lambda _, __, output: losses.append(output.loss.item()))
    norms = reference.train_frozen(model, optimizer, data, frozen)
    watching.remove()
    return losses, [float(norm) for norm in norms]


def saved(model: Any) -> dict[str, torch.Tensor]:
    """What an ordinary checkpoint of the model holds, on every rank."""
    found = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    return {name: tensor.clone() for name, tensor in found.items()}


def ran_as(cell: Cell, wrapped: Any) -> bool:
    """Whether the engine that the cell is about really runs it."""
    if cell.wrap.__name__.startswith("ddp"):
        return isinstance(wrapped, DistributedDataParallel)
    return isinstance(wrapped, FSDPModule) and all(isinstance(p, DTensor) for p in wrapped.parameters())


def train_under_dense_mask(cell: Cell, frozen: reference.Dense) -> dict[str, torch.Tensor]:
    """The same engine, with what is frozen put back by hand, in parameters and gradients."""
    model = tiny.model(cell.architecture, dtype=cell.dtype)
    start = reference.weights(model)
    cell.wrap(model)
    optimizer = cell.optimizer(model)
    named = dict(model.named_parameters())
    local = {name: _local(at, named[name]) for name, at in frozen.items()}
    for micro_batches in DATA:
        for ids in micro_batches:
            (model(input_ids=mine(ids), labels=mine(ids)).loss / len(micro_batches)).backward()
        for name, p in named.items():
            p.grad.to_local()[local[name]] = 0
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        with torch.no_grad():
            for name, p in named.items():
                p.to_local()[local[name]] = _local(start[name], p)[local[name]]
        optimizer.zero_grad()
    return saved(model)


def _local(whole: torch.Tensor, like: Any) -> torch.Tensor:
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None).to_local()


def run_cell(cell: Cell) -> dict[str, Any]:
    alone = tiny.model(cell.architecture, dtype=cell.dtype)
    model = tiny.model(cell.architecture, dtype=cell.dtype)
    mask = reference.mask_for(alone, cell.fraction)
    frozen, start = still(alone, mask, cell.train), reference.weights(alone)
    expected_losses, expected_norms = train_alone(alone, cell.optimizer(alone), DATA, frozen)
    expected = alone.state_dict()
    if cell.wrap is mixed_precision:
        expected |= train_under_dense_mask(cell, frozen)

    nf.selective(model, mask, train=cell.train)
    fewest = min(len(module) for name, module in model.named_parameters() if name.endswith("_trained"))
    wrapped = cell.wrap(model) or model
    optimizer = cell.optimizer(wrapped)
    losses, norms = train(wrapped, optimizer, DATA)
    now = saved(wrapped)
    return {
        "ran": ran_as(cell, wrapped),
        "keys": list(now) == list(expected),
        "fewest lines": fewest,
        "losses": losses,
        "expected losses": expected_losses,
        "norms": norms,
        "expected norms": expected_norms,
        "difference": max(float((now[n] - expected[n]).abs().max()) for n in now),
        "frozen": sum(int(at.sum()) for at in frozen.values()),
        "frozen changed": sum(
            int((reference.bits(now[n][at]) != reference.bits(start[n][at])).sum()) for n, at in frozen.items()
        ),
        "trainable": sum(int((~at).sum()) for at in frozen.values()),
        "trainable changed": sum(int((now[n] != start[n])[~at].sum()) for n, at in frozen.items()),
        "moments": sum(p.numel() for p in optimizer.state),
    }


def what_happens_in(cell: Cell) -> dict[str, Any]:
    torch._dynamo.reset()
    try:
        return run_cell(cell)
    except Exception:
        return {"error": traceback.format_exc()}


def cells_for(ranks: int) -> list[Cell]:
    return [cell for cell in CELLS if cell.wrap is not hybrid or ranks == 4]


def run_cells(folder: str) -> None:
    found = {str(cell): what_happens_in(cell) for cell in cells_for(dist.get_world_size())}
    Path(folder, f"{dist.get_rank()}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[dict[str, Any]]]:
    """World size -> for each rank what each cell showed; every world runs once."""

    @cache
    def of(ranks: int) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp("cells")
        run_distributed_test(run_cells, world_size=ranks, args=(str(folder),), timeout=850)
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]

    return of


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "ranks"),
    [(cell, ranks) for ranks in (1, 2, 4) for cell in cells_for(ranks)],
    ids=lambda value: str(value),
)
def test_ranks_train_as_one_process_under_a_dense_mask_does(
    cell: Cell, ranks: int, outcomes: Callable[[int], list[dict[str, Any]]]
) -> None:
    for rank in outcomes(ranks):
        found = rank[str(cell)]
        assert "error" not in found, found["error"]
        assert found["ran"]
        assert found["keys"]
        assert found["frozen"] > 1000
        assert found["frozen changed"] == 0
        assert found["trainable changed"] > 0.9 * found["trainable"]
        assert found["moments"] == found["trainable"]
        if cell.fraction < 0.1:
            assert found["fewest lines"] < 4
        precise = cell.dtype == torch.float64
        # The loss itself is float32 in every model; in bfloat16 the ranks round what they then add up.
        assert found["losses"] == pytest.approx(found["expected losses"], rel=1e-6 if precise else 0.02)
        assert found["norms"] == pytest.approx(found["expected norms"], rel=1e-12 if precise else 0.02)
        # With mixed precision, from the same engine under a dense mask.
        assert found["difference"] <= (1e-12 if precise else 1e-3)


BATCHES = reference.batches(6)


def ready(seed: int = 0) -> tuple[Any, torch.optim.Optimizer]:
    """With another seed, a model that learned something else: all must come from the checkpoint."""
    model = tiny.model("llama", seed)
    nf.selective(model, reference.mask_for(model, 0.4), train="unmasked")
    layerwise(model)
    assert isinstance(model, FSDPModule)
    return model, adamw(model)


def leg(folder: str, load: str | None, steps: slice, save: str | None) -> None:
    model, optimizer = ready(seed=1 if load else 0)
    state = {"training": Everything(model, optimizer)}
    if load:
        dcp.load(state, checkpoint_id=str(Path(folder, load)))
    reference.train(model, optimizer, BATCHES[steps])  # the same rows on each rank: three do not share out exactly
    if save:
        dcp.save(state, checkpoint_id=str(Path(folder, save)))
        return
    alone = tiny.model("llama")
    start, frozen = reference.weights(alone), still(alone, reference.mask_for(alone, 0.4), "unmasked")
    reference.train_frozen(alone, adamw(alone), BATCHES, frozen)
    now = saved(model)
    assert list(now) == list(alone.state_dict())
    for name, p in alone.state_dict().items():
        assert (now[name] - p).abs().max() <= 1e-12, name
    for name, at in frozen.items():
        assert torch.equal(reference.bits(now[name][at]), reference.bits(start[name][at])), name


@pytest.mark.slow
def test_distributed_checkpoints_take_four_two_and_three_ranks_the_same_way_as_one_process(tmp_path: Path) -> None:
    run_distributed_test(leg, world_size=4, args=(str(tmp_path), None, slice(0, 2), "a"))
    run_distributed_test(leg, world_size=2, args=(str(tmp_path), "a", slice(2, 4), "b"))
    run_distributed_test(leg, world_size=3, args=(str(tmp_path), "b", slice(4, 6), None))


def hand_over() -> None:
    """FSDP2 to DDP to FSDP2 through whole state dicts that rank 0 alone has."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    model, optimizer = ready()
    reference.train(model, optimizer, BATCHES[:1])
    expected = saved(model)
    state = get_model_state_dict(model, options=options)
    assert bool(state) == (dist.get_rank() == 0)

    parallel = tiny.model("llama", seed=1)
    nf.selective(parallel, reference.mask_for(parallel, 0.4), train="unmasked")
    parallel = DistributedDataParallel(parallel)
    loading = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(parallel.module, state, options=loading)
    found = saved(parallel)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name

    every, _ = ready(seed=3)
    set_model_state_dict(every, dict(found), options=StateDictOptions(full_state_dict=True))
    assert all(torch.equal(tensor, found[name]) for name, tensor in saved(every).items())

    other, other_optimizer = ready(seed=2)
    set_model_state_dict(other, found if dist.get_rank() == 0 else {}, options=loading)
    reference.train(other, other_optimizer, BATCHES[1:2])
    reference.train(parallel, adamw(parallel), BATCHES[1:2])
    for (name, tensor), again in zip(saved(parallel).items(), saved(other).values(), strict=True):
        assert (tensor - again).abs().max() <= 1e-12, name


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_whole_state_dicts_go_from_engine_to_engine(ranks: int) -> None:
    run_distributed_test(hand_over, world_size=ranks)


def refuse() -> None:
    model = tiny.model("llama")
    mask = reference.mask_for(model)
    layerwise(model)
    with pytest.raises(nf.FreezeError, match="not wrapped or sharded yet"):
        nf.selective(model, mask)

    model, _ = ready()
    with pytest.raises(nf.FreezeError, match="cannot be merged in place; save_pretrained writes"):
        nf.merge(model)

    model = tiny.model("llama")
    nf.selective(model, mask)
    with pytest.raises(nf.FreezeError, match="tensor in the place of weight of a SelectiveLinear, as FSDP1 does"):
        FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))(input_ids=DATA[0][0])

    for architecture, owner, name in (
        ("llama", "mlp.up_proj", "weight"),
        ("mixtral", "mlp.experts", "gate_up_proj"),
    ):
        model = tiny.model(architecture)
        nf.selective(model, reference.mask_for(model))
        parameters = model.model.layers[0].get_submodule(owner)._parameters
        # As parallelize_module leaves it.
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        parameters[name] = torch.nn.Parameter(distribute_tensor(parameters[name].detach(), mesh, [Shard(0)]))
        with pytest.raises(nf.FreezeError, match=r"do not run under tensor parallelism; use nf\.freeze instead"):
            model(input_ids=DATA[0][0])


def test_what_is_sharded_already_tensor_parallelism_and_fsdp1_are_refused() -> None:
    run_distributed_test(refuse, world_size=2)
