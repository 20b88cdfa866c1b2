"""Which ways of generating a guard can stand in, and which it must refuse."""

from __future__ import annotations

from typing import Any

import torch

from neurofreeze.errors import GuardError

_CACHES = (None, "dynamic", "dynamic_full", "offloaded", "quantized")
# Arguments of generate that bring another loop, or prompts whose tokens cannot be seen.
_ARGUMENTS = {
    "assistant_model": "assisted decoding proposes several tokens at a time",
    "custom_generate": "a loop of your own decides what is seen of it",
    "inputs_embeds": "a prompt without token ids cannot be shown to an expert or in reflection",
    "past_key_values": "the part of the prompt that is in a cache cannot be shown to an expert or in reflection",
    "synced_gpus": "ranks that wait for each other would wait for a reflection on one of them",
}


def guardable(model: Any, generation_config: Any, arguments: dict[str, Any], withdraws: bool) -> Any:
    """What generate will run with, if a guard can stand in it.

    Args:
        model: the model to guard.
        generation_config: as given to generate, or None.
        arguments: the other arguments of generate.
        withdraws: whether an answer may be replaced.

    Raises:
        GuardError: naming the mode that cannot be guarded.
    """
    if model.config.is_encoder_decoder:
        raise GuardError(f"{type(model).__name__} is an encoder-decoder model; expected a causal language model")
    for name, reason in _ARGUMENTS.items():
        if arguments.get(name) is not None and arguments[name] is not False:
            raise GuardError(f"generate({name}=...) cannot be guarded: {reason}; leave it out, or turn the guard off")
    if _sharded(model):
        raise GuardError("a model sharded by FSDP or ZeRO-3 cannot be guarded; load it whole, or by device_map")
    settings = {name: value for name, value in arguments.items() if name not in _HANDLED}
    # What generate itself will run with: the arguments over the config over the model's own.
    config, _ = model._prepare_generation_config(generation_config, **settings)
    mode = config.get_generation_mode()
    if mode not in ("greedy_search", "sample"):
        raise GuardError(
            f"{str(mode.value).replace('_', ' ')} cannot be guarded: its rows are candidates, not answers; expected "
            "greedy decoding or sampling, num_beams=1"
        )
    if config.guidance_scale not in (None, 1):
        raise GuardError(
            f"guidance_scale={config.guidance_scale} cannot be guarded: the model runs once more at each step, on "
            "another prompt, and a gate would see that one; leave it out"
        )
    if config.cache_implementation not in _CACHES:
        raise GuardError(
            f"cache_implementation={config.cache_implementation!r} cannot be guarded: its passes are compiled or "
            "paged; leave it out"
        )
    kept = [name for name in ("output_hidden_states", "output_attentions") if getattr(config, name)]
    if kept and withdraws:
        raise GuardError(
            f"generate({kept[0]}=True) with a guard that may replace an answer: there are none of the new one; "
            "leave it out, or use reactions that replace nothing (flag, blend)"
        )
    return config


def prompts_of(arguments: dict[str, Any], config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, int64 [rows, length] both, one row for each answer that is to be generated.

    Raises:
        GuardError: if they are not there, or padded on the right, where the newest token would not be the prompt's.
    """
    found = [arguments[name] for name in ("inputs", "input_ids") if arguments.get(name) is not None]
    if len(found) != 1 or found[0].dim() != 2:
        raise GuardError("expected the prompts' token ids, inputs= or input_ids=, as one tensor [prompts, length]")
    ids, attention = found[0], arguments.get("attention_mask")
    if attention is None:
        # Generate would guess which tokens are padding; a guess must not decide what a gate sees.
        if len(ids) > 1:
            raise GuardError("expected attention_mask= with several prompts: it tells what is padding")
        attention = torch.ones_like(ids)
    if not bool(attention[:, -1].all()):
        raise GuardError("the prompts are padded on the right; a guard reads the newest token: padding_side='left'")
    copies = config.num_return_sequences or 1
    return ids.repeat_interleave(copies, 0), attention.repeat_interleave(copies, 0)


def budget(model: Any, generation_config: Any, arguments: dict[str, Any], config: Any, prompt: int) -> int:
    """How many tokens an answer may have, as generate reckons it: max_new_tokens, else what max_length leaves."""
    if config.max_new_tokens is not None:
        return int(config.max_new_tokens)
    given = (
        arguments.get("max_length"),
        getattr(generation_config, "max_length", None),
        model.generation_config.max_length,
    )
    if all(length is None for length in given):
        return int(config.max_length)  # a default length is counted from the end of the prompt
    return max(1, int(config.max_length) - prompt)


# Handled by generate before its settings; no part of a generation config.
_HANDLED = (
    "inputs",
    "input_ids",
    "attention_mask",
    "logits_processor",
    "stopping_criteria",
    "tokenizer",
    "streamer",
    "prefix_allowed_tokens_fn",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    "synced_gpus",
    "assistant_model",
    "custom_generate",
    "trust_remote_code",
)


def _sharded(model: Any) -> bool:
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
    from transformers.integrations.fsdp import is_fsdp_managed_module

    return bool(is_deepspeed_zero3_enabled()) or bool(is_fsdp_managed_module(model))
