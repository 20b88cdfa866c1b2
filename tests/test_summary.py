"""The summary's counts against dense masks."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from neurofreeze import freeze
from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap
from tests import reference, tiny
from tests.reference import adamw, mask_for


@pytest.mark.parametrize("granularity", ["head", "channel"])
@pytest.mark.parametrize("architecture", tiny.CONFIGS)
def test_the_summary_counts_what_a_dense_mask_counts(architecture: str, granularity: Any) -> None:
    model = tiny.model(architecture)
    mask = mask_for(model, granularity=granularity)
    summary = freeze(model, adamw(model), mask).summary()
    frozen = reference.dense(model, mask)
    everything = reference.dense(model, ~NeuronMask.none(NeuronMap.of(model, granularity)))
    assert summary.frozen_neurons == mask.count
    assert summary.frozen_elements == sum(int(where.sum()) for where in frozen.values())
    assert summary.total_elements == sum(p.numel() for p in model.parameters())
    for site in summary.sites:
        alone = {name: bits & (name == site.name) for name, bits in mask.bits.items()}
        here = reference.dense(model, NeuronMask(alone, mask.config))
        assert site.frozen_elements == sum(int(where.sum()) for where in here.values()), site.name
        assert (site.neurons, site.frozen_neurons) == (len(mask.bits[site.name]), int(alone[site.name].sum()))
    assert sum(site.elements for site in summary.sites) == sum(int(where.sum()) for where in everything.values())


def test_the_summary_prints_a_line_and_a_table() -> None:
    model = tiny.model("llama")
    mask = mask_for(model)
    summary = freeze(model, adamw(model), mask).summary()
    total = sum(p.numel() for p in model.parameters())
    trainable = total - summary.frozen_elements
    assert str(summary) == (
        f"frozen neurons: {mask.count} of 152 || frozen params: {summary.frozen_elements:,} || "
        f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {100 * trainable / total:.2f}"
    )
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(summary)
    text = console.export_text()
    for name, bits in mask.bits.items():
        assert f"{name} " in text
        assert f" {int(np.sum(bits))} " in text
    assert f"{summary.rest_elements:,}" in text
