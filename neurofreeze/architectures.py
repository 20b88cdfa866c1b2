"""What transformers' tensor-parallel plans leave unsaid: models without one, fused projections, indivisible blocks."""

from __future__ import annotations

from typing import Any, Literal

# Patterns of modules and parameters relative to the decoder, in the format of `config.base_model_tp_plan`.
PLANS: dict[str, dict[str, str]] = {
    "bloom": {
        "h.*.self_attention.query_key_value": "colwise",
        "h.*.self_attention.dense": "rowwise",
        "h.*.mlp.dense_h_to_4h": "colwise",
        "h.*.mlp.dense_4h_to_h": "rowwise",
    },
    "falcon": {
        "h.*.self_attention.query_key_value": "colwise",
        "h.*.self_attention.dense": "rowwise",
        "h.*.mlp.dense_h_to_4h": "colwise",
        "h.*.mlp.dense_4h_to_h": "rowwise",
    },
    "gpt2": {
        "h.*.attn.c_attn": "colwise",
        "h.*.attn.c_proj": "rowwise",
        "h.*.mlp.c_fc": "colwise",
        "h.*.mlp.c_proj": "rowwise",
    },
    "gpt_bigcode": {
        "h.*.attn.c_attn": "colwise",
        "h.*.attn.c_proj": "rowwise",
        "h.*.mlp.c_fc": "colwise",
        "h.*.mlp.c_proj": "rowwise",
    },
    "gpt_neo": {
        "h.*.attn.attention.q_proj": "colwise",
        "h.*.attn.attention.k_proj": "colwise",
        "h.*.attn.attention.v_proj": "colwise",
        "h.*.attn.attention.out_proj": "rowwise",
        "h.*.mlp.c_fc": "colwise",
        "h.*.mlp.c_proj": "rowwise",
    },
    # Its experts are kept [in, out], so that the rows of one are split where others' columns are.
    "gpt_oss": {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.sinks": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.experts.gate_up_proj": "rowwise",
        "layers.*.mlp.experts.down_proj": "colwise",
    },
    "gptj": {
        "h.*.attn.q_proj": "colwise",
        "h.*.attn.k_proj": "colwise",
        "h.*.attn.v_proj": "colwise",
        "h.*.attn.out_proj": "rowwise",
        "h.*.mlp.fc_in": "colwise",
        "h.*.mlp.fc_out": "rowwise",
    },
    "mpt": {
        "blocks.*.attn.Wqkv": "colwise",
        "blocks.*.attn.out_proj": "rowwise",
        "blocks.*.ffn.up_proj": "colwise",
        "blocks.*.ffn.down_proj": "rowwise",
    },
    "opt": {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.out_proj": "rowwise",
        "layers.*.fc1": "colwise",
        "layers.*.fc2": "rowwise",
    },
    "stablelm": {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    },
}

COLUMN_PARALLEL = frozenset({"colwise", "colwise_gather_output", "packed_colwise"})
ROW_PARALLEL = frozenset({"rowwise", "rowwise_split_input", "packed_rowwise"})
# Gate and up, each one piece: [gate; up]. Experts split in another style have them interleaved, or have no gate.
PACKED = frozenset({"packed_colwise", "packed_rowwise"})
# Parameters that every device holds whole or splits by token, and modules that only exchange what others computed.
NOT_SPLIT = frozenset(
    {
        "all_reduce",
        "embedding_colwise",
        "embedding_rowwise",
        "local_params",
        "mla_kv_a_proj",
        "moe_tp_experts",
        "replicate",
        "replicated_with_grad_allreduce",
        "sequence_parallel",
    }
)

# Modules whose presence in a block says that it is not made of neurons, and why.
INDIVISIBLE: dict[str, str] = {
    "kv_a_proj_with_mqa": "latent attention: the keys and values of all heads are read from one compressed vector",
    "in_proj_qkv": "linear attention: a convolution and a recurrent state stand between what it reads and writes",
    "in_proj_qkvz": "linear attention: a convolution and a recurrent state stand between what it reads and writes",
}

# MLPs with one projection holding [gate; up].
FUSED_GATE_UP = frozenset({"glm", "glm4", "phi3"})

# q_proj holds, head by head, the query and a gate on what the head writes.
GATED_QUERY = frozenset({"qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"})

# How one projection holds q, k and v. "blocks": all queries, all keys, all values. "groups": for each KV head the
# queries that use it, its key, its value.
FusedLayout = Literal["blocks", "groups"]
_FUSED_QKV: dict[str, FusedLayout] = {
    "bloom": "groups",
    "gpt2": "blocks",
    "gpt_neox": "groups",
    "mpt": "blocks",
    "phi3": "blocks",
}
_MULTI_QUERY = frozenset({"falcon", "gpt_bigcode"})  # one KV head, where config.multi_query says so


def fused_layout(config: Any) -> FusedLayout | None:
    """How a model's fused projection holds q, k and v; None if that is not known."""
    if config.model_type in _MULTI_QUERY:
        return "blocks" if _is_multi_query(config) else "groups"
    return _FUSED_QKV.get(config.model_type)


def kv_heads(config: Any) -> int:
    """Number of KV heads, each of which serves as many query heads."""
    if config.model_type in _MULTI_QUERY and not getattr(config, "new_decoder_architecture", False):
        return 1 if config.multi_query else int(config.num_attention_heads)
    for name in ("num_key_value_heads", "num_kv_heads"):
        if getattr(config, name, None):
            return int(getattr(config, name))
    return int(config.num_attention_heads)


def _is_multi_query(config: Any) -> bool:
    # Falcon's newer variant ignores multi_query, which stays true in its configs.
    return bool(config.multi_query) and not getattr(config, "new_decoder_architecture", False)
