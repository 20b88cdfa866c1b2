"""What the mask card needs beyond the mask itself."""

from __future__ import annotations

import re

from neurofreeze.mask import NeuronMask


def card_rows(mask: NeuronMask) -> list[tuple[str, str, str]]:
    """One row a layer: (layer, 'chosen / total' MLP neurons, the same for attention); '-' where it has none.

    A site that is not named `layers.<number>...` has a row of its own.
    """
    counts: dict[str, dict[str, tuple[int, int]]] = {}
    for name, bits in mask.bits.items():
        layer = re.match(r"layers\.(\d+)\.", name)
        kind = "attention" if "att" in name else "mlp"
        row = counts.setdefault(layer.group(1) if layer else name, {})
        chosen, total = row.get(kind, (0, 0))
        row[kind] = (chosen + int(bits.sum()), total + len(bits))
    return [(layer, _cell(row.get("mlp")), _cell(row.get("attention"))) for layer, row in counts.items()]


def code(text: object) -> str:
    """`text` as a Markdown code span that is safe inside a table cell."""
    line = " ".join(str(text).split()).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}" if line else "(empty)"


def hub_id(model: str | None) -> bool:
    """Whether `model` can be a hub id: the hub refuses a card whose base_model is a local path."""
    return model is not None and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", model) is not None


FILTERS = (card_rows, code, hub_id)


def _cell(count: tuple[int, int] | None) -> str:
    return "-" if count is None else f"{count[0]:,} / {count[1]:,}"
