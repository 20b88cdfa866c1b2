"""Loading checkpoints: safetensors only, no code from the checkpoint, a tokenizer ready for batches and chats."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from neurofreeze.data.batches import PLAIN_TEMPLATE
from neurofreeze.errors import ModelError, NeuroFreezeWarning


def load_config(folder: Path) -> Any:
    """The checkpoint's config.

    Raises:
        ModelError: if it is malformed or of an unknown kind.
    """
    _require_folder(folder)
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder} has no usable config.json: {str(error).splitlines()[0]}") from error


def load_model(folder: Path, dtype: torch.dtype | str = "auto", place: bool = True) -> Any:
    """The causal language model in `folder`, on the GPU if there is one.

    Args:
        folder: a checkpoint folder with safetensors weights.
        dtype: precision of the weights; "auto" for the checkpoint's own.
        place: move it to the GPU; False to leave that to an engine that shards it.

    Raises:
        ModelError: if the weights are missing or do not fit the config.
    """
    _require_folder(folder)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    # transformers would go on with random numbers in their place.
    if missing := sorted(found["missing_keys"]):
        raise ModelError(f"{folder} lacks {len(missing)} weights that its config asks for: {', '.join(missing[:3])}")
    return model.to("cuda") if place and torch.cuda.is_available() else model


def plain_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`, with a padding token.

    Raises:
        ModelError: if there is none.
    """
    _require_folder(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder} has no usable tokenizer: {str(error).splitlines()[0]}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`, with a padding token and a chat template.

    Raises:
        ModelError: if there is none.
    """
    tokenizer = plain_tokenizer(folder)
    if tokenizer.chat_template is None:
        warnings.warn(
            f"{folder} has no chat template; using plain 'User: ... Assistant:' turns. Is this an instruction model?",
            NeuroFreezeWarning,
            stacklevel=2,
        )
        tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer


def _require_folder(folder: Path) -> None:
    # transformers would take it for a hub id, and speak of that.
    if not Path(folder).is_dir():
        raise ModelError(f"there is no folder {folder}, or no longer; expected a checkpoint")
