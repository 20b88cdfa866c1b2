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


def top_neurons(mask: NeuronMask, count: int = 10) -> list[tuple[str, int, str]]:
    """The chosen neurons with the highest scores, (site, neuron, score), at most `count` MLP ones and as many heads.

    Kinds are listed one after the other: their scores are not comparable.
    """
    rows: dict[str, list[tuple[float, str, int]]] = {}
    for site, scores in (mask.scores or {}).items():
        kind = "attention" if "att" in site else "mlp"
        chosen = mask.bits[site].nonzero()[0]
        rows.setdefault(kind, []).extend((float(scores[neuron]), site, int(neuron)) for neuron in chosen)
    # Sorted by score alone, so that equal ones stay in the order of layers and neurons.
    best = [sorted(rows[kind], key=lambda row: -row[0])[:count] for kind in sorted(rows, reverse=True)]
    return [(site, neuron, f"{score:.4g}") for found in best for score, site, neuron in found]


def shade(cell: str) -> str:
    """A bar of eighths for a 'chosen / total' cell: the card's heat map."""
    if cell == "-":
        return ""
    chosen, total = (int(part.replace(",", "")) for part in cell.split(" / "))
    eighths = -(-chosen * 64 // total) if total else 0
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def code(text: object) -> str:
    """`text` as a Markdown code span that is safe inside a table cell."""
    line = " ".join(str(text).split()).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}" if line else "(empty)"


def hub_id(model: str | None) -> bool:
    """Whether `model` can be a hub id: the hub refuses a card whose base_model is a local path."""
    return model is not None and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", model) is not None


FILTERS = (card_rows, code, hub_id, shade, top_neurons)


def _cell(count: tuple[int, int] | None) -> str:
    return "-" if count is None else f"{count[0]:,} / {count[1]:,}"
