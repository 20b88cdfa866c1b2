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

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_LLAMA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "mistral": {**_LLAMA, "head_dim": 6, "sliding_window": None},
    "qwen2": _LLAMA,
    "qwen3": {**_LLAMA, "head_dim": 8},
    "gemma": {**_LLAMA, "head_dim": 6},
    "smollm3": _LLAMA,
    "gpt2": {"vocab_size": 64, "n_embd": 36, "n_inner": 70, "n_layer": 2, "n_head": 6, "n_positions": 64},
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
    "gpt_neox": {
        "vocab_size": 64,
        "hidden_size": 36,
        "intermediate_size": 70,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "max_position_embeddings": 64,
    },
}


def config(architecture: str = "llama", **changes: Any) -> Any:
    """A tiny config: 2 layers, 6 heads (2 KV heads where grouped), hidden 36, MLP 70."""
    return AutoConfig.for_model(architecture, **{**CONFIGS[architecture], **changes})


def model(architecture: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A tiny model with random weights, every bias non-zero, in eval mode."""
    torch.manual_seed(seed)
    built = AutoModelForCausalLM.from_config(config(architecture, **changes), dtype=dtype)
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
