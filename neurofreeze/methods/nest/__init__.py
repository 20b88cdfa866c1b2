"""NeST (arXiv 2602.16835): a model is taught to refuse by a few update vectors on the rows that recognise harm.

1. `rows`: linear probes on the outputs of gate_proj and up_proj choose rows of either, finer than neurons.
2. `clusters`: the chosen rows of a projection are clustered by how they respond to the prompts.
3. `updates`: the rows of a cluster share one vector u, W[j] <- W[j] + u; nothing else trains.
4. Supervised training on refusals; then the vectors are folded into the weights, which are an ordinary model's again.
"""

from __future__ import annotations

from neurofreeze.methods.nest.choice import Rows, Updates, choose
from neurofreeze.methods.nest.updates import attach, fold

__all__ = ["Rows", "Updates", "attach", "choose", "fold"]
