"""The benchmark's own arithmetic: ratios of known numbers, the order of turns, and the bytes it counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neurofreeze import NeuronMap, NeuronMask
from tests.benchmarks.arms import Arm, Attached, attach
from tests.benchmarks.engines import ENGINES, Training
from tests.benchmarks.models import QUICK
from tests.benchmarks.ratios import Ratio, turns


def test_a_ratio_pairs_each_round_with_its_own_baseline() -> None:
    ratio = Ratio.of([[1.1, 1.1], [2.6, 2.6], [3.3, 3.3]], [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    assert ratio.value == pytest.approx(1.1)  # not 2.6 / 2, the ratio of the medians of all
    assert (ratio.rounds, ratio.steps) == (3, 6)


def test_a_ratio_ignores_a_slow_step_and_a_slow_round() -> None:
    arm = [[1.02, 1.02, 50.0]] * 10 + [[60.0, 60.0, 60.0]]
    ratio = Ratio.of(arm, [[1.0, 1.0, 1.0]] * 11)
    assert [ratio.value, ratio.low, ratio.high] == pytest.approx([1.02] * 3)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    ratios = [Ratio.of(*(rng.lognormal(0, 0.05, (2, 15, 3)) * [[[1.1]], [[1.0]]])) for _ in range(200)]
    assert 0.9 <= np.mean([ratio.low <= 1.1 <= ratio.high for ratio in ratios]) <= 1


@pytest.mark.parametrize("arms", [2, 3, 6, 10])
def test_a_steady_drift_cancels_over_each_pair_of_rounds(arms: int) -> None:
    for first in range(0, 2 * arms, 2):
        pair = [turns(arms, first), turns(arms, first + 1)]
        assert all(sorted(order) == list(range(arms)) for order in pair)
        assert {sum(order.index(arm) for order in pair) for arm in range(arms)} == {arms - 1}
    assert {turns(arms, number)[0] for number in range(0, 2 * arms, 2)} == set(range(arms))


def weigh(arm: Arm) -> tuple[Training, NeuronMask, Attached]:
    kind = ENGINES["plain"]
    training = kind.build(QUICK, torch.device("cpu"))
    mask = NeuronMask.random(NeuronMap.of(QUICK.config()), arm.fraction, seed=1)
    with attach(arm, kind, training, mask, weigh=True) as attached:
        training.step(torch.zeros(1, 8, dtype=torch.int64))
    return training, mask, attached


def test_the_freezer_s_bytes_are_its_indices_and_the_copy_of_a_step() -> None:
    training, mask, attached = weigh(Arm("frozen", 0.3))
    neuron_map = NeuronMap.of(training.model)
    rows = sum(len(selection.index) for selection in mask.select(neuron_map).values())
    assert attached.engine == "plain"
    assert attached.copied == 4 * neuron_map.elements(mask.bits)
    assert attached.held % (8 * rows) == 0
    assert 1 <= attached.held // (8 * rows) <= 3  # of weights, of gradients, of gradients at the step


def test_the_recipe_s_bytes_are_dense_masks_and_one_gradient() -> None:
    training, mask, attached = weigh(Arm("recipe", 0.3))
    masked = [p for name, p in training.module.named_parameters() if name in mask.select(NeuronMap.of(training.model))]
    assert attached.hook_calls == len(masked)
    assert attached.held == sum(p.numel() for p in masked)
    assert attached.copied == 4 * max(p.numel() for p in masked)


@pytest.mark.parametrize("kind", ["frozen", "recipe"])
def test_nothing_stays_attached(kind: str) -> None:
    training, _, _ = weigh(Arm(kind, 0.3))
    assert training.optimizer is not None
    assert not training.optimizer._optimizer_step_pre_hooks
    assert not training.optimizer._optimizer_step_post_hooks
    for p in training.module.parameters():
        assert not p._backward_hooks
        assert not p._post_accumulate_grad_hooks
