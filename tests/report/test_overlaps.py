"""Masks side by side: figures in the table and the picture are those of the masks."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from neurofreeze.cli import main
from neurofreeze.errors import MaskError
from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap
from neurofreeze.report.overlaps import by_layer, figure, table
from neurofreeze.strategies.stability import Overlap
from tests import tiny


@pytest.fixture(scope="module")
def masks() -> dict[str, NeuronMask]:
    neuron_map = NeuronMap.of(tiny.config())
    return {f"m{seed}": NeuronMask.random(neuron_map, 0.4, seed) for seed in range(3)}


def test_each_layer_has_the_overlap_of_its_own_neurons(masks: dict[str, NeuronMask]) -> None:
    found = by_layer(masks)
    assert set(found) == {("m0", "m1"), ("m0", "m2"), ("m1", "m2")}
    for layer, overlap in found["m0", "m1"].items():
        a, b = (np.concatenate([m.bits[f"layers.{layer}.{k}"] for k in ("attention", "mlp")])
                for m in (masks["m0"], masks["m1"]))  # fmt: skip
        assert overlap.jaccard == (a & b).sum() / (a | b).sum()


def test_the_table_holds_the_overlap_of_every_pair(masks: dict[str, NeuronMask]) -> None:
    console = Console(file=io.StringIO(), width=140)
    console.print(table(masks, by_layer(masks)))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    for a, b in (("m0", "m1"), ("m1", "m2")):
        assert f"{a} | {b}" in printed
        assert f"{Overlap.of(masks[a], masks[b]).jaccard:.3f}" in printed


def test_the_figure_is_a_picture(masks: dict[str, NeuronMask]) -> None:
    picture = matplotlib.image.imread(io.BytesIO(figure(by_layer(masks))))
    assert picture.shape[1] == 1400
    assert picture.std() > 0.05


def test_masks_of_different_models_are_refused(masks: dict[str, NeuronMask]) -> None:
    other = NeuronMask.random(NeuronMap.of(tiny.config("gpt2")), 0.4, 0)
    with pytest.raises(MaskError, match="another mask"):
        by_layer({**masks, "other": other})


def test_the_command_compares_folders(
    masks: dict[str, NeuronMask], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, mask in masks.items():
        mask.save_pretrained(tmp_path / name / "mask")
    paths = ",".join(str(tmp_path / name / "mask") for name in masks)
    assert main(["compare", f"masks={paths}", f"output={tmp_path / 'o.png'}"]) == 0
    assert "m0/mask | m1/mask" in capsys.readouterr().out.replace("\n", " ")
    assert (tmp_path / "o.png").stat().st_size > 1000


def test_one_mask_is_too_few(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "masks=a"]) == 2
    assert "two or more mask folders" in capsys.readouterr().err
