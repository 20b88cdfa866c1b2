"""What a mask freezes in a model, or in the adapters that train instead of it, site by site, as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap, Site

if TYPE_CHECKING:
    from neurofreeze.adapters import Adapters, Part


class SiteSummary(NamedTuple):
    """One site's neurons and weight elements."""

    name: str
    neurons: int
    frozen_neurons: int
    elements: int
    frozen_elements: int


@dataclass(frozen=True)
class FreezeSummary:
    """Frozen and trainable counts; `str()` gives one line, printing with rich a table.

    Of a model with adapters the elements counted are those that PEFT trains, the frozen ones those held in them.
    """

    sites: tuple[SiteSummary, ...]
    total_elements: int
    rest_elements: int
    frozen_rest_elements: int = 0
    adapters: bool = False

    @classmethod
    def of(cls, neuron_map: NeuronMap, mask: NeuronMask, adapters: Adapters | None = None) -> FreezeSummary:
        """Count what `mask` freezes in a model of this map, or in its adapters."""
        mask.check(neuron_map)
        if adapters:
            from neurofreeze.adapters import Part

            base = {name: Part(found, neuron_map.shapes[name]) for name, found in mask.select(neuron_map).items()}
            frozen = {**base, **adapters.parts}
            sites = tuple(_adapted_site(site, mask, adapters, frozen) for site in neuron_map.sites.values())
            total = sum(adapters.trained.values())
            held = sum(frozen[name].numel for name in adapters.trained if name in frozen)
            held -= sum(site.frozen_elements for site in sites)
            return cls(sites, total, total - sum(site.elements for site in sites), held, adapters=True)
        total = sum(map(math.prod, neuron_map.shapes.values()))
        sites = tuple(_site(neuron_map, mask, name) for name in neuron_map.sites)
        held = neuron_map.size(neuron_map.held(mask.config.rest))
        return cls(sites, total, total - sum(site.elements for site in sites), held)

    @property
    def frozen_elements(self) -> int:
        """Weight elements that stay as they are."""
        return self.frozen_rest_elements + sum(site.frozen_elements for site in self.sites)

    @property
    def frozen_neurons(self) -> int:
        """Neurons that stay as they are."""
        return sum(site.frozen_neurons for site in self.sites)

    def __str__(self) -> str:
        neurons = sum(site.neurons for site in self.sites)
        trainable = self.total_elements - self.frozen_elements
        what = "adapter params" if self.adapters else "params"
        return (
            f"frozen neurons: {self.frozen_neurons:,} of {neurons:,} || "
            f"frozen {what}: {self.frozen_elements:,} || trainable {what}: {trainable:,} || "
            f"all {what}: {self.total_elements:,} || trainable%: {100 * trainable / self.total_elements:.2f}"
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table("site", caption=str(self))
        held = "adapter params held at zero" if self.adapters else "frozen params"
        for column in ("neurons", "frozen", "trainable", held, "trainable params"):
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
        train = self.rest_elements - self.frozen_rest_elements
        table.add_row("rest (in no neuron)", "", "", "", f"{self.frozen_rest_elements:,}", f"{train:,}")
        yield table


def _site(neuron_map: NeuronMap, mask: NeuronMask, name: str) -> SiteSummary:
    def elements(chosen: bool) -> int:
        alone = {other: mask.bits[other] & False for other in neuron_map.sites}
        alone[name] = mask.bits[name] if chosen else mask.bits[name] | True
        return neuron_map.elements(alone)

    bits = mask.bits[name]
    return SiteSummary(name, len(bits), int(bits.sum()), elements(False), elements(True))


def _adapted_site(site: Site, mask: NeuronMask, adapters: Adapters, frozen: dict[str, Part]) -> SiteSummary:
    modules = tuple({member.parameter.rpartition(".")[0] + "." for member in site.members})
    trained = {name: numel for name, numel in adapters.trained.items() if name.startswith(modules)}
    held = sum(frozen[name].numel for name in trained if name in frozen)
    bits = mask.bits[site.name]
    return SiteSummary(site.name, len(bits), int(bits.sum()), sum(trained.values()), held)
