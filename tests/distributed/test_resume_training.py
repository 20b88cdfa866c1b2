"""Fine-tunes that are cut off on two ranks and go on on another number of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from neurofreeze.config.backend import BackendConfig
from neurofreeze.config.location import conf_folder
from neurofreeze.config.objectives import AnchorConfig, ReplayConfig
from neurofreeze.config.schema import TrainingConfig
from neurofreeze.data import read
from neurofreeze.mask import NeuronMask
from neurofreeze.models.load import load_config
from neurofreeze.neurons import NeuronMap
from neurofreeze.testing import run_distributed_test
from neurofreeze.training import sft
from neurofreeze.training.objectives import Anchor, Replay
from neurofreeze.verification import verify

pytestmark = pytest.mark.slow

# An epoch is three steps, so that the second one is gone on with.
CONFIG = TrainingConfig(
    steps=5, batch_size=4, learning_rate=1e-2, warmup_steps=0, max_length=96, bf16="false", save_steps=2
)


def tune(base: Path, output: Path, name: str, cut: bool) -> sft.TrainingResult:
    """Fine-tune with a mask, on this rank and the others; `cut` off at step 5, where step 4 is saved."""

    def progress(done: int, _: int) -> None:
        if cut and done == 5:
            raise RuntimeError("power cut")

    if name != "plain":  # as launchers do
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    known = read("bundled:retail_bank/evaluation", limit=4)
    settings: dict[str, Any] = yaml.safe_load((conf_folder() / "backend" / f"{name}.yaml").read_text(encoding="utf-8"))
    return sft.fine_tune(
        base,
        output,
        read("bundled:retail_bank/train", limit=12),
        CONFIG,
        backend=BackendConfig(**settings),
        seed=0,
        mask=mask(base),
        objectives=[Replay(ReplayConfig(0.3, rows=3), known), Anchor(AnchorConfig(0.5, rows=1, tokens=3), known)],
        progress=progress,
    )


def mask(base: Path) -> NeuronMask:
    return NeuronMask.random(NeuronMap.of(load_config(base)), 0.3, seed=1).with_rest("norms")


def cut_off(base: Path, output: Path, name: str) -> None:
    with pytest.raises(RuntimeError, match="power cut"):
        tune(base, output, name, cut=True)


def go_on(base: Path, output: Path, name: str, losses: list[float]) -> None:
    found = [loss for _, loss in tune(base, output, name, cut=False).losses]
    assert found == pytest.approx(losses, rel=1e-5)


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of one process that nothing interrupted."""
    output = tmp_path_factory.mktemp("whole") / "out"
    return [loss for _, loss in tune(tiny_checkpoint, output, "plain", cut=False).losses]


@pytest.mark.parametrize(("saved", "resumed"), [("ddp", "plain"), ("fsdp2", "fsdp2")])
def test_one_rank_goes_on_where_two_were(
    saved: str, resumed: str, whole: list[float], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run_distributed_test(cut_off, 2, args=(tiny_checkpoint, output, saved))
    assert (tmp_path / "out.unfinished" / "checkpoint-4" / "complete.json").is_file()
    arguments = (tiny_checkpoint, output, resumed, whole)
    if resumed == "plain":
        go_on(*arguments)
    else:
        run_distributed_test(go_on, 1, args=arguments)
    found = verify(tiny_checkpoint, output, mask(tiny_checkpoint))
    assert found.ok
    assert found.trainable_changed > 0.9 * found.trainable
