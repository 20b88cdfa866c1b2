"""Which architectures are shown to be mapped right, read from the list that tests/test_architectures.py runs from.

`python -m tests.architecture_table` writes docs/architectures.md; a test fails while that is out of date.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from neurofreeze.neurons import NeuronMap, Site
from tests import tiny
from tests.test_architectures import CASES, Case

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
COLUMNS = ("model_type", "models", "attention", "MLP", "experts", "fused", "also in no neuron")
# In no neuron of any architecture, and said once above the table.
_EVERYWHERE = ("norm", "ln_", "embed", "lm_head", "wte", "wpe", "bias")


def page() -> str:
    """The content of docs/architectures.md."""
    rows = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    rows += ["| " + " | ".join(_row(name, case)) + " |" for name, case in CASES.items()]
    return _PAGE.format(table="\n".join(rows))


def _row(name: str, case: Case) -> Iterable[str]:
    neuron_map = NeuronMap.of(tiny.config(name))
    sites = list(neuron_map.sites.values())
    yield f"`{neuron_map.model_type}`"
    yield case.family
    yield _blocks(site for site in sites if site.kind == "attention") or "not covered"
    yield _blocks(site for site in sites if site.kind == "mlp" and not site.name.endswith("experts")) or "–"
    experts = _blocks(site for site in sites if site.name.endswith("experts"))
    yield f"{experts}: {case.experts}" if experts else "–"
    yield "; ".join(filter(None, [case.qkv if case.fused else "", case.notes])) or "–"
    yield _rest(neuron_map)


def _blocks(sites: Iterable[Site]) -> str:
    """What the sites read through and write through, without repetition."""
    found = {}
    for site in sites:
        reads = [member.parameter for member in site.reads if not member.parameter.endswith("bias")]
        through = ", ".join(f"`{_leaf(name)}`" for name in reads)
        shared = "shared: " if site.name.endswith("shared") else ""
        found[f"{shared}{through} → `{_leaf(site.writes.parameter)}`"] = None
    return "; ".join(found)


def _rest(neuron_map: NeuronMap) -> str:
    uncovered = {_starred(block): why.partition(":")[0] for block, why in neuron_map.uncovered.items()}
    found = {f"`{_leaf(block)}` ({why})": None for block, why in uncovered.items()}
    for name in neuron_map.rest:
        inside = any(name.startswith(f"{block}.") for block in neuron_map.uncovered)
        if not inside and not any(part in name for part in _EVERYWHERE):
            found[f"`{_starred(name).rpartition('*.')[2].removesuffix('.weight')}`"] = None
    return ", ".join(found) or "–"


def _leaf(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]


def _starred(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


_PAGE = """# Architectures

What the tests of this repository show of each architecture, on tiny random models in float64 with odd sizes, at both
granularities:

- zeroing what a neuron of an MLP or an expert reads, or writes, or both, gives the logits that removing its activation
  gives, within 1e-10; so does zeroing what a head or channel of an attention writes, and with it all that it alone
  reads through;
- changing a head's rows of q changes that head's output and no other's; changing its rows of k or v, that of the heads
  on the same KV head, channel by channel for v;
- the neurons of experts pruned (`ablated`) give the logits that zeroing their weights gives, within 1e-12, and what is
  watched while they compute leaves the logits as they are, within 1e-12;
- `save_pretrained` and `neurofreeze verify` agree on every parameter's name, shape and bits, also where experts are
  saved one by one;
- every element is in at most one neuron, or in the heads of one KV head; sites and rest cover every parameter once;
- with a random third frozen, training leaves it bit for bit as it was and trains the rest as a dense mask would.

In no neuron of any of them: embeddings, norms, biases of what writes, `lm_head`.

{table}

"Fused" says where q, k and v lie in one matrix, and what else needs saying. Experts' matrices are [number, out, in], or
[number, in, out] where transposed; "[gate; up]" has all gate rows before all up rows. See
[mixtures of experts](neurons.md#mixtures-of-experts).

Other architectures are read from transformers' tensor-parallel plan where there is one, every shape checked, but not
shown to be right here. `neurofreeze doctor model=...` prints what it finds, and what it does not cover with the reason.
What is not understood is refused by name: no plan, a style of splitting or a fused layout that is not known, shapes
that do not fit, experts stored otherwise than planned.

This page is written by `python -m tests.architecture_table` from the list that the tests run from.
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
