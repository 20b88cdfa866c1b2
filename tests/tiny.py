"""Tiny models of each architecture with odd sizes, and a tiny checkpoint with a real tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

_LLAMA = {
    "vocab_size": 64,
    "hidden_size": 36,
    "intermediate_size": 70,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_GPT2 = {"vocab_size": 64, "n_embd": 36, "n_inner": 70, "n_layer": 2, "n_head": 6, "n_positions": 64}

_MOE = {**_LLAMA, "moe_intermediate_size": 10, "num_experts": 5, "num_experts_per_tok": 2, "head_dim": 6}

_LINEAR = {
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 6,
}

_FALCON = {
    **{name: value for name, value in _LLAMA.items() if "key_value" not in name and name != "intermediate_size"},
    "model_type": "falcon",
    "ffn_hidden_size": 70,
    "bias": True,
}

# What of a config is not the name of its model type; `model_type` where that differs from the key.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_LLAMA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "mistral": {**_LLAMA, "head_dim": 6, "sliding_window": None},
    "qwen2": _LLAMA,
    "qwen3": {**_LLAMA, "head_dim": 8},
    "gemma": {**_LLAMA, "head_dim": 6},
    "gemma2": {**_LLAMA, "head_dim": 8, "query_pre_attn_scalar": 6, "sliding_window": 4},
    "gemma3_text": {**_LLAMA, "head_dim": 8, "query_pre_attn_scalar": 6, "sliding_window": 4},
    "smollm3": _LLAMA,
    "olmo2": _LLAMA,
    "cohere": {**_LLAMA, "use_qk_norm": True},
    "starcoder2": _LLAMA,
    "stablelm": {**_LLAMA, "use_qkv_bias": True},
    "phi3": _LLAMA,
    "gpt2": _GPT2,
    "gpt_bigcode": {**_GPT2, "multi_query": True, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "gptj": {**_GPT2, "rotary_dim": 4},
    "gpt_neo": {
        "vocab_size": 64,
        "hidden_size": 36,
        "intermediate_size": 70,
        "num_layers": 2,
        "num_heads": 6,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 4,
        "max_position_embeddings": 64,
    },
    "gpt_neox": {
        "vocab_size": 64,
        "hidden_size": 36,
        "intermediate_size": 70,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "max_position_embeddings": 64,
    },
    "opt": {
        "vocab_size": 64,
        "hidden_size": 36,
        "ffn_dim": 70,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 36,
        "dropout": 0.0,
    },
    "bloom": {"vocab_size": 64, "hidden_size": 36, "n_layer": 2, "n_head": 6},
    "mpt": {"vocab_size": 64, "d_model": 36, "n_layers": 2, "n_heads": 6, "max_seq_len": 64, "expansion_ratio": 2},
    "falcon": {**_FALCON, "multi_query": True},
    "falcon-heads": {**_FALCON, "multi_query": False, "alibi": True},
    "falcon-groups": {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    "mixtral": {**_LLAMA, "head_dim": 6, "num_local_experts": 5, "intermediate_size": 10},
    "qwen3_moe": {**_MOE, "mlp_only_layers": [0]},
    "qwen3_next": {**_MOE, **_LINEAR, "shared_expert_intermediate_size": 14},
    "qwen3_5_text": {**_LLAMA, **_LINEAR},
    "qwen3_5_moe_text": {**_MOE, **_LINEAR, "shared_expert_intermediate_size": 14},
    "deepseek_v3": {
        **_LLAMA,
        "num_key_value_heads": 6,
        "moe_intermediate_size": 10,
        "n_routed_experts": 5,
        "n_shared_experts": 2,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 6,
        "v_head_dim": 6,
    },
    "gpt_oss": {**_LLAMA, "head_dim": 6, "num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 10},
}


def config(architecture: str = "llama", **changes: Any) -> Any:
    """A tiny config: 2 layers, 6 heads (2 KV heads where grouped), hidden 36, MLP 70, 5 experts of 10."""
    fields = {"model_type": architecture, **CONFIGS[architecture], **changes}
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def model(architecture: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A tiny model with random weights, every bias non-zero, in eval mode."""
    torch.manual_seed(seed)
    # torch's grouped matrix product knows no float64.
    built = AutoModelForCausalLM.from_config(
        config(architecture, **changes), dtype=dtype, experts_implementation="eager"
    )
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0, 0.2)
    return built.eval()


def checkpoint(folder: Path, rows: list[str], **changes: Any) -> Path:
    """Save a tiny bfloat16 Llama with a word tokenizer trained on `rows` and a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.ByteLevel()
    from tokenizers import decoders

    words.decoder = decoders.ByteLevel()
    words.train_from_iterator(
        rows, trainers.BpeTrainer(vocab_size=400, special_tokens=["<pad>", "<s>", "</s>", "<unk>"])
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 512, **changes}
    model("llama", dtype=torch.bfloat16, **sizes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
