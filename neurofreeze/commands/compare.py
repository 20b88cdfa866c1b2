"""neurofreeze compare: how much masks overlap, layer by layer, and how much random ones of their sizes would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from neurofreeze.commands.settings import compose
from neurofreeze.config.commands import CompareConfig
from neurofreeze.console import console, say
from neurofreeze.files import write_atomically


def main(overrides: Sequence[str]) -> int:
    """Print a table and write a figure."""
    # Hydra reads a,b as a sweep; to the user it is a list.
    given = [f"masks=[{o.partition('=')[2].strip('[]')}]" if o.startswith("masks=") else o for o in overrides]
    return compose("compare", given, _compare, "compare", needs_folder=False)


def _compare(config: CompareConfig, _: Path, __: str) -> int:
    from neurofreeze.mask import NeuronMask
    from neurofreeze.report.overlaps import by_layer, figure, table

    masks = {_label(path, config.masks): NeuronMask.from_pretrained(path) for path in config.masks}
    layers = by_layer(masks)
    console.print(table(masks, layers))
    output = Path(config.output)
    write_atomically(output, figure(layers))
    say(f"figure: {output}")
    return 0


def _label(path: str, paths: Sequence[str]) -> str:
    """As little of the path's end as tells it from the others."""
    parts = Path(path).parts
    for count in range(1, len(parts)):
        label = "/".join(parts[-count:])
        if sum(Path(other).parts[-count:] == parts[-count:] for other in paths) == 1:
            return label
    return path
