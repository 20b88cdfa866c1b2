"""Where fine-tuning has moved the weights: each site's share in the squared norm of the update since the start."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neurofreeze.checkpoints import open_parameters, read_config
from neurofreeze.conversion import Parameters
from neurofreeze.distributed import gather
from neurofreeze.engines import Shard, recognise
from neurofreeze.geometry import Block
from neurofreeze.neurons import NeuronMap, Selection, canonical_name
from neurofreeze.pieces import cut

REST = "rest"  # parameters in no neuron

Sums = dict[str, float]  # site -> squared norm


class UpdateShares:
    """Compares a model in training with the checkpoint it started from, shard by shard.

    Args:
        base: the checkpoint.
        neuron_map: of its model.
    """

    def __init__(self, base: Path, neuron_map: NeuronMap) -> None:
        self.base = base
        self.map = neuron_map
        self._sites = _sites(neuron_map)

    def measure(self, model: Any, optimizer: Any) -> dict[str, Any]:
        """`update_norm`, and under `updates` each site's share and that of the rest. Collective.

        Nothing where other parameters than the checkpoint's train, such as adapters: the weights themselves stay.
        """
        names = [canonical_name(name) for name, p in model.named_parameters() if p.requires_grad]
        if not set(names) <= self.map.shapes.keys():
            return {}
        local: dict[tuple[str, int], Sums] = {}
        with open_parameters(self.base, read_config(self.base)) as base:
            for shard in recognise(model, optimizer).shards(names):
                replica = (shard.replica.group, shard.replica.copy_index)
                sums = local.setdefault(replica, defaultdict(float))
                for site, value in self._moved(shard, base).items():
                    sums[site] += value
        total = _total(gather({key: dict(sums) for key, sums in local.items()}))
        norm = sum(total.values())
        sites = [*self.map.sites, REST]
        return {
            "update_norm": math.sqrt(norm),
            "updates": {site: total.get(site, 0.0) / norm if norm else 0.0 for site in sites},
        }

    def _moved(self, shard: Shard, base: Parameters) -> Sums:
        """Squared norm of what this rank holds of one parameter's update, by site."""
        stored, master = base.lazy(shard.name), shard.master()
        squares = torch.zeros(master.shape, dtype=torch.float64, device=master.device)
        for block in shard.blocks:
            place = slice(block.offset, block.offset + block.numel)
            before = _part(stored, shard.shape, block).to(master.device, torch.float64).reshape(-1)
            squares[place] = (master[place].to(torch.float64) - before).square()
        sums: Sums = {}
        for site, selection in self._sites.get(shard.name, {}).items():
            pieces = list(cut([shard], {shard.name: selection}))
            sums[site] = sum(float(piece.read(squares).sum()) for piece in pieces)
            for piece in pieces:
                piece.zero(squares)
        return {**sums, REST: float(squares.sum())}


def _sites(neuron_map: NeuronMap) -> dict[str, dict[str, Selection]]:
    """Parameter -> site -> what of it belongs to the site's neurons."""
    found: dict[str, dict[str, Selection]] = defaultdict(dict)
    for site in neuron_map.sites.values():
        for member in site.members:
            whole = member.selection(np.ones(site.neurons, dtype=np.bool_))
            known = found[member.parameter].get(site.name, whole)
            found[member.parameter][site.name] = Selection(whole.axis, np.union1d(known.index, whole.index))
    return found


def _part(stored: Any, shape: tuple[int, ...], block: Block) -> torch.Tensor:
    """A block of a parameter; of a lazy one nothing else is read."""
    rows = slice(block.row, block.row + block.rows)
    cols = slice(block.col, block.col + block.cols)
    part: torch.Tensor = stored[(rows, (rows, cols), (block.matrix, rows, cols))[len(shape) - 1]]
    return part


def _total(contributions: list[dict[tuple[str, int], Sums]]) -> Sums:
    """The sums over all shards of one copy of the model: under DDP every rank has one, and each would count."""
    copies: dict[str, dict[int, Sums]] = defaultdict(lambda: defaultdict(lambda: defaultdict(float)))
    for contribution in contributions:
        for (group, copy_index), sums in contribution.items():
            for site, value in sums.items():
                copies[group][copy_index][site] += value
    total: Sums = defaultdict(float)
    for by_copy in copies.values():
        for site, value in by_copy[min(by_copy)].items():
            total[site] += value
    return total
