"""What transformers' tensor-parallel plans leave unsaid: models without one, and the layout of fused projections."""

from __future__ import annotations

# Module patterns relative to the base model, in the format of `config.base_model_tp_plan`.
PLANS: dict[str, dict[str, str]] = {
    "gpt2": {
        "h.*.attn.c_attn": "colwise",
        "h.*.attn.c_proj": "rowwise",
        "h.*.mlp.c_fc": "colwise",
        "h.*.mlp.c_proj": "rowwise",
    },
    "opt": {
        "decoder.layers.*.self_attn.q_proj": "colwise",
        "decoder.layers.*.self_attn.k_proj": "colwise",
        "decoder.layers.*.self_attn.v_proj": "colwise",
        "decoder.layers.*.self_attn.out_proj": "rowwise",
        "decoder.layers.*.fc1": "colwise",
        "decoder.layers.*.fc2": "rowwise",
    },
}

# One projection holding q, k and v: all queries, then all keys, then all values ("blocks"), or q, k, v head by
# head ("per_head").
FUSED_QKV: dict[str, str] = {"gpt2": "blocks", "gpt_neox": "per_head"}

COLUMN_PARALLEL = frozenset({"colwise"})
ROW_PARALLEL = frozenset({"rowwise"})
# Modules that every device holds whole: their parameters belong to no neuron.
REPLICATED = frozenset({"replicated_with_grad_allreduce", "sequence_parallel"})
