"""Frozen neurons counted per layer and per group."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from neurofreeze.report.content import GROUPS, Site

KINDS = ("mlp", "attention")


@dataclass(frozen=True)
class Count:
    """`frozen` of `total` neurons."""

    frozen: int = 0
    total: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.frozen + other.frozen, self.total + other.total)


def by_layer(sites: Iterable[Site]) -> dict[int, dict[str, Count]]:
    """Layer -> kind -> count, layers ascending; a kind that a layer lacks counts 0 of 0."""
    table: dict[int, dict[str, Count]] = {}
    for site in sorted(sites, key=lambda site: site.layer):
        row = table.setdefault(site.layer, {kind: Count() for kind in KINDS})
        row[site.kind] += Count(int(site.frozen.sum()), len(site.frozen))
    return table


def by_group(sites: Iterable[Site]) -> dict[str, dict[str, Count]]:
    """Group -> kind -> count."""
    table = {group: {kind: Count() for kind in KINDS} for group in GROUPS}
    for site in sites:
        for code, group in enumerate(GROUPS):
            members = site.groups == code
            table[group][site.kind] += Count(int((members & site.frozen).sum()), int(members.sum()))
    return table
