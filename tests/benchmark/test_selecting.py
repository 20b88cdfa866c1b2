"""What a cell freezes: the arm's own mask, or a random one of its sizes that each seed draws anew."""

from __future__ import annotations

from pathlib import Path

from neurofreeze.benchmark.selecting import drawn
from neurofreeze.config.benchmark import SuiteArmConfig
from neurofreeze.mask import NeuronMask
from neurofreeze.models.load import load_config
from neurofreeze.neurons import NeuronMap


def test_each_seed_draws_its_own_random_mask_as_large_at_every_site(tiny_checkpoint: Path, tmp_path: Path) -> None:
    mask = NeuronMask.random(NeuronMap.of(load_config(tiny_checkpoint)), 0.4, seed=9).with_rest("norms")
    mask.save_pretrained(tmp_path)
    found = [drawn(tmp_path, SuiteArmConfig(freeze="random"), seed) for seed in (0, 1, 2)]
    assert len({each.digest for each in [mask, *found]}) == 4
    for each in found:
        assert {name: bits.sum() for name, bits in each.bits.items()} == {n: b.sum() for n, b in mask.bits.items()}
        assert each.config.rest == mask.config.rest
    assert drawn(tmp_path, SuiteArmConfig(freeze="random"), 1) == found[1]
    assert drawn(tmp_path, SuiteArmConfig(freeze="safety"), 1) == mask
