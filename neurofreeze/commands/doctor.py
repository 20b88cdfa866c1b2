"""neurofreeze doctor: a model's neurons as a table, and what this installation has."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from neurofreeze.commands.settings import compose
from neurofreeze.config.schema import Config
from neurofreeze.console import console, say
from neurofreeze.neurons import Member, NeuronMap

_PACKAGES = ("torch", "transformers", "accelerate", "trl", "deepspeed", "safetensors", "hydra-core")


def main(overrides: Sequence[str]) -> int:
    """Print the map; nothing is downloaded but the model itself, nothing is written."""
    return compose("doctor", overrides, _doctor, needs_folder=False)


def _doctor(config: Config, folder: Path, _: str) -> int:
    from neurofreeze.models.resolve import resolve

    source = resolve(config.model, config.revision)
    from neurofreeze.console import quiet_transformers
    from neurofreeze.models.load import load_config

    quiet_transformers()
    neuron_map = NeuronMap.of(load_config(source.folder), config.granularity)  # type: ignore[arg-type]
    say(f"{config.model} ({source.origin}), {neuron_map.model_type}, granularity {neuron_map.granularity}")
    console.print(_neurons(neuron_map))
    console.print(_rest(neuron_map))
    if neuron_map.uncovered:
        console.print(_uncovered(neuron_map))
    say(", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES if _installed(name)))
    say(f"devices: {_devices()}")
    return 0


def _neurons(neuron_map: NeuronMap) -> Table:
    table = Table(title=f"{neuron_map.total:,} neurons", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("kind", no_wrap=True)
    table.add_column("sites", justify="right")
    table.add_column("neurons each", justify="right")
    table.add_column("parameter", overflow="fold", min_width=24)
    table.add_column("shape", justify="right", no_wrap=True)
    table.add_column("one neuron owns")
    rows: dict[tuple[str, ...], int] = {}
    for site in neuron_map.sites.values():
        for member in site.members:
            shape = "x".join(map(str, neuron_map.shapes[member.parameter]))
            within = member.parameter.partition(f".{site.layer}.")[2] or member.parameter
            row = (site.kind, f"{site.neurons:,}", within, shape, _owns(member, site.kind))
            rows[row] = rows.get(row, 0) + 1
    for (kind, *cells), sites in rows.items():
        table.add_row(kind, str(sites), *cells)
    return table


def _owns(member: Member, kind: str) -> str:
    neurons, width = member.index.shape
    lines = f"{width} {('row', 'column', 'element')[member.axis]}{'s' if width > 1 else ''}"
    if kind != "attention":
        return lines
    # A fused projection begins with a head's query, its own, and ends with the value, which it may share.
    first, last = (len(np.unique(member.index[:, at])) < neurons for at in (0, -1))
    return lines + (", shared" if first else ", partly shared" if last else "")


def _uncovered(neuron_map: NeuronMap) -> Table:
    blocks = {_starred(block): why for block, why in neuron_map.uncovered.items()}
    table = Table("block", title="not covered: no neuron of it can be frozen", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("why")
    for block, why in blocks.items():
        table.add_row(block, why)
    return table


def _rest(neuron_map: NeuronMap) -> Table:
    counts: dict[str, int] = {}
    for name in neuron_map.rest:
        counts[_starred(name)] = counts.get(_starred(name), 0) + math.prod(neuron_map.shapes[name])
    total = sum(map(math.prod, neuron_map.shapes.values()))
    table = Table(
        "parameter",
        title="rest: in no neuron, trained unless the mask names its kind",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("elements", justify="right")
    table.add_column("share", justify="right")
    for name, count in counts.items():
        table.add_row(name, f"{count:,}", f"{count / total:.1%}")
    return table


def _starred(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _devices() -> str:
    import torch

    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return f"no GPU, {torch.get_num_threads()} CPU threads"
