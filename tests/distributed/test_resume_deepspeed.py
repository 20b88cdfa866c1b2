"""Going on from DeepSpeed checkpoints: at other world sizes through the universal format, and on another engine.

Four ranks train and save; two go on and save; three finish. Each leg runs all cells in one process group.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from deepspeed.checkpoint import ds_to_universal
from deepspeed.utils.zero_to_fp32 import load_state_dict_from_zero_checkpoint
from safetensors.torch import load_file, save_file
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

from neurofreeze import FreezeError, NeuronMask, freeze, verify
from neurofreeze.testing import run_distributed_test
from tests import reference, tiny
from tests.distributed.test_deepspeed import CLASSES, DTYPES, train, weights
from tests.reference import mask_for

pytestmark = pytest.mark.slow

# Name -> (precision, stage of each leg). Stage 3 reads only its own checkpoints: DeepSpeed names its files differently.
CELLS: dict[str, tuple[str, tuple[int, int, int]]] = {
    "stage 1 fp32": ("fp32", (1, 1, 1)),
    "stage 2 fp32": ("fp32", (2, 2, 2)),
    "stage 3 fp32": ("fp32", (3, 3, 3)),
    "stage 2 bf16": ("bf16", (2, 2, 2)),
    "stage 3 bf16": ("bf16", (3, 3, 3)),
    "stages 2, 1 and 2 fp32": ("fp32", (2, 1, 2)),
}
BATCHES = reference.batches(6)


def start(cell: str, leg: int) -> Any:
    import deepspeed

    dtype, stages = CELLS[cell]
    model = tiny.model("llama", dtype=DTYPES[dtype])
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": 0.5,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stages[leg]},
        **({"bf16": {"enabled": True}} if dtype == "bf16" else {}),
        **({"checkpoint": {"load_universal": True}} if leg else {}),
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1, eps=1e-2)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def the_mask() -> NeuronMask:
    return mask_for(tiny.model("llama"))


def begin() -> None:
    import deepspeed

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    deepspeed.init_distributed("gloo", dist_init_required=False)


def keep(engine: Any, path: Path) -> None:
    found = weights(engine)
    if dist.get_rank() == 0:
        save_file({name: tensor.clone() for name, tensor in found.items()}, path)


def first_leg(folder: str) -> None:
    """Train two steps and save; then train on, uninterrupted."""
    begin()
    for cell, (dtype, stages) in CELLS.items():
        engine = start(cell, 0)
        freezer = freeze(engine, mask=the_mask())
        assert freezer.engine.name == f"deepspeed {CLASSES[stages[0], dtype]}"
        train(engine, BATCHES[:2])
        engine.save_checkpoint(folder, tag=f"{cell}, 4 ranks", client_state=freezer.state_dict())
        if dist.get_rank() == 0:
            Path(folder, f"{cell}.json").write_text(json.dumps(freezer.state_dict()))
        train(engine, BATCHES[2:])
        keep(engine, Path(folder, f"{cell}, uninterrupted.safetensors"))


def second_leg(folder: str) -> None:
    """Refuse what does not fit, then load after freezing, train two steps and save."""
    begin()
    for cell in CELLS:
        engine = start(cell, 1)
        freezer = freeze(engine, mask=the_mask())
        _, client = engine.load_checkpoint(folder, tag=f"{cell}, 4 ranks, universal")
        freezer.load_state_dict(client)
        train(engine, BATCHES[2:4])
        engine.save_checkpoint(folder, tag=f"{cell}, 2 ranks", client_state=freezer.state_dict())

    engine = start(cell, 1)
    freezer = freeze(engine, mask=mask_for(tiny.model("llama"), seed=2))
    with pytest.raises(FreezeError, match="resume with the checkpoint's mask"):
        freezer.load_state_dict(client)
    with pytest.raises(FreezeError, match="the checkpoint carries no mask"):
        freezer.load_state_dict({})


def third_leg(folder: str) -> None:
    """Load before freezing, and finish."""
    begin()
    for cell in CELLS:
        engine = start(cell, 2)
        _, client = engine.load_checkpoint(folder, tag=f"{cell}, 2 ranks, universal")
        freezer = freeze(engine, mask=NeuronMask.from_state_dict(client))
        freezer.load_state_dict(client)
        train(engine, BATCHES[4:])
        freezer.check()
        keep(engine, Path(folder, f"{cell}, resumed.safetensors"))


def to_universal(folder: str, ranks: int) -> None:
    """What `python -m deepspeed.checkpoint.ds_to_universal` does, for every cell."""
    options = ["--num_extract_workers", "1", "--num_merge_workers", "1", "--inject_missing_state"]
    for cell in CELLS:
        saved = str(Path(folder, f"{cell}, {ranks} ranks"))
        sys.argv[1:] = ["--input_folder", saved, "--output_folder", f"{saved}, universal", *options]
        ds_to_universal.main(ds_to_universal.parse_arguments())


@pytest.fixture(scope="module")
def legs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for leg, ranks in ((first_leg, 4), (second_leg, 2), (third_leg, 3)):
        run_distributed_test(leg, world_size=ranks, args=(str(folder),))
        if leg is not third_leg:
            run_distributed_test(to_universal, world_size=1, args=(str(folder), ranks))
    return folder


@pytest.mark.parametrize("cell", CELLS)
def test_four_two_and_three_ranks_take_the_same_way_as_four(cell: str, legs: Path) -> None:
    dtype, _ = CELLS[cell]
    model = tiny.model("llama", dtype=DTYPES[dtype])
    frozen, begun = reference.dense(model, the_mask()), reference.weights(model)
    resumed, uninterrupted = (load_file(legs / f"{cell}, {run}.safetensors") for run in ("resumed", "uninterrupted"))
    # Ranks add up the same gradients, so that only rounding differs; bfloat16 weights round coarsely.
    tolerance = 1e-5 if dtype == "fp32" else 0.02
    for name, before in begun.items():
        at = frozen[name]
        assert torch.equal(reference.bits(resumed[name][at]), reference.bits(before[at])), name
        assert (resumed[name].float() - uninterrupted[name].float()).abs().max() <= tolerance, name
        assert at.all() or (resumed[name] - before)[~at].abs().max() > 1e-3, name


def go_on_under_fsdp2(exported: str, record: str) -> None:
    state = json.loads(Path(record).read_text())
    model, alone = (AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32) for _ in range(2))
    mask = NeuronMask.from_state_dict(state)
    frozen, begun = reference.dense(alone, mask), reference.weights(alone)
    options = {"lr": 0.05, "weight_decay": 0.1, "eps": 1e-2}
    reference.train_frozen(alone, torch.optim.AdamW(alone.parameters(), **options), BATCHES[2:], frozen)

    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    freezer = freeze(model, optimizer, mask)
    assert freezer.engine.name == "fsdp2"
    freezer.load_state_dict(state)
    reference.train(model, optimizer, BATCHES[2:])
    for (name, p), q in zip(model.named_parameters(), alone.parameters(), strict=True):
        now = p.detach().full_tensor()
        assert torch.equal(reference.bits(now[frozen[name]]), reference.bits(begun[name][frozen[name]])), name
        assert (now - q).abs().max() <= 1e-5, name


def test_zero_3_goes_on_under_fsdp2_through_an_exported_checkpoint(legs: Path, tmp_path: Path) -> None:
    base, exported = tmp_path / "base", tmp_path / "exported"
    model = tiny.model("llama", dtype=torch.float32)
    model.save_pretrained(base)
    load_state_dict_from_zero_checkpoint(model, str(legs), tag="stage 3 fp32, 4 ranks").save_pretrained(exported)
    found = verify(base, exported, the_mask())
    assert found.ok
    assert found.trainable_changed > 10_000
    run_distributed_test(go_on_under_fsdp2, world_size=3, args=(str(exported), str(legs / "stage 3 fp32.json")))
