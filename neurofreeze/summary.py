"""What a mask freezes in a model, site by site, as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap


class SiteSummary(NamedTuple):
    """One site's neurons and weight elements."""

    name: str
    neurons: int
    frozen_neurons: int
    elements: int
    frozen_elements: int


@dataclass(frozen=True)
class FreezeSummary:
    """Frozen and trainable counts; `str()` gives one line, printing with rich a table."""

    sites: tuple[SiteSummary, ...]
    total_elements: int
    rest_elements: int

    @classmethod
    def of(cls, neuron_map: NeuronMap, mask: NeuronMask) -> FreezeSummary:
        """Count what `mask` freezes in a model of this map."""
        mask.check(neuron_map)
        total = sum(map(math.prod, neuron_map.shapes.values()))
        rest = sum(math.prod(neuron_map.shapes[name]) for name in neuron_map.rest)
        return cls(tuple(_site(neuron_map, mask, name) for name in neuron_map.sites), total, rest)

    @property
    def frozen_elements(self) -> int:
        """Weight elements that stay as they are."""
        return sum(site.frozen_elements for site in self.sites)

    @property
    def frozen_neurons(self) -> int:
        """Neurons that stay as they are."""
        return sum(site.frozen_neurons for site in self.sites)

    def __str__(self) -> str:
        neurons = sum(site.neurons for site in self.sites)
        trainable = self.total_elements - self.frozen_elements
        return (
            f"frozen neurons: {self.frozen_neurons:,} of {neurons:,} || "
            f"frozen params: {self.frozen_elements:,} || trainable params: {trainable:,} || "
            f"all params: {self.total_elements:,} || trainable%: {100 * trainable / self.total_elements:.2f}"
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table("site", caption=str(self))
        for column in ("neurons", "frozen", "trainable", "frozen params", "trainable params"):
            table.add_column(column, justify="right")
        for site in self.sites:
            cells = (
                site.neurons,
                site.frozen_neurons,
                site.neurons - site.frozen_neurons,
                site.frozen_elements,
                site.elements - site.frozen_elements,
            )
            table.add_row(site.name, *(f"{cell:,}" for cell in cells))
        table.add_row("rest (in no neuron)", "", "", "", "0", f"{self.rest_elements:,}")
        yield table


def _site(neuron_map: NeuronMap, mask: NeuronMask, name: str) -> SiteSummary:
    def elements(chosen: bool) -> int:
        alone = {other: mask.bits[other] & False for other in neuron_map.sites}
        alone[name] = mask.bits[name] if chosen else mask.bits[name] | True
        return neuron_map.elements(alone)

    bits = mask.bits[name]
    return SiteSummary(name, len(bits), int(bits.sum()), elements(False), elements(True))
