"""Llama-shaped models with random weights, from their configs alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes, and the tokens that each rank trains on per step."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tokens: int

    def config(self) -> Any:
        return AutoConfig.for_model(
            "llama",
            hidden_size=self.hidden,
            intermediate_size=self.mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=self.tokens,
            use_cache=False,
        )

    def model(self, seed: int = 0) -> Any:
        """In float32, in training mode, on the default device."""
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(self.config(), dtype=torch.float32).train()

    def summary(self) -> dict[str, int]:
        with torch.device("meta"):
            return {**asdict(self), "parameters": sum(p.numel() for p in self.model().parameters())}


QUICK = Shape(hidden=128, mlp=344, layers=2, heads=4, kv_heads=4, vocabulary=512, tokens=64)
CPU = Shape(hidden=512, mlp=1376, layers=6, heads=8, kv_heads=8, vocabulary=4096, tokens=256)
SELECTIVE = Shape(hidden=768, mlp=2048, layers=7, heads=12, kv_heads=12, vocabulary=4096, tokens=512)
GPU = Shape(hidden=2048, mlp=8192, layers=16, heads=32, kv_heads=8, vocabulary=32000, tokens=2048)
LLAMA_2_7B = Shape(hidden=4096, mlp=11008, layers=32, heads=32, kv_heads=32, vocabulary=32000, tokens=4096)
