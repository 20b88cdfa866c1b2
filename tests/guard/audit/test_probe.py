"""The probe finds the plane, and measures distances from it by the formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neurofreeze.errors import DataError
from neurofreeze.guard.audit.probe import LinearProbe

torch.manual_seed(0)
AXIS = torch.nn.functional.normalize(torch.randn(40), dim=0)
HARMFUL, HARMLESS = (0.3 * torch.randn(20, 40) + sign * AXIS for sign in (1, -1))


def test_margins_are_signed_distances_from_the_plane() -> None:
    probe = LinearProbe.fit(HARMFUL, HARMLESS)
    assert np.linalg.norm(probe.weight) == pytest.approx(1)
    states = torch.cat([HARMFUL, HARMLESS])
    np.testing.assert_allclose(probe.margins(states), states.double().numpy() @ probe.weight + probe.bias, rtol=1e-12)
    assert min(probe.margins(HARMFUL)) > 0 > max(probe.margins(HARMLESS))
    assert abs(float(probe.weight @ AXIS.numpy())) > 0.8


def test_a_shift_of_states_shifts_margins_by_its_part_along_the_probe() -> None:
    probe = LinearProbe.fit(HARMFUL, HARMLESS)
    shift = torch.randn(40)
    moved = np.subtract(probe.margins(HARMFUL + shift), probe.margins(HARMFUL))
    np.testing.assert_allclose(moved, float(shift.double().numpy() @ probe.weight), atol=1e-6)


def test_the_plane_does_not_depend_on_the_scale_of_the_layer_or_on_how_many_prompts_a_kind_has() -> None:
    probe, larger = LinearProbe.fit(HARMFUL, HARMLESS), LinearProbe.fit(100 * HARMFUL, 100 * HARMLESS)
    np.testing.assert_allclose(larger.weight, probe.weight, atol=1e-4)
    assert larger.bias == pytest.approx(100 * probe.bias, abs=0.05)
    repeated = LinearProbe.fit(HARMFUL, HARMLESS.repeat(5, 1), c=1.0)
    assert abs(repeated.bias) < 0.3  # without weights the plane would move towards the rarer kind


def test_a_kind_without_prompts_is_refused() -> None:
    with pytest.raises(DataError, match="found 0 harmful and 20 harmless"):
        LinearProbe.fit(HARMFUL[:0], HARMLESS)
