"""The decoder blocks of a model, reading what they give, and adding to it.

Layer i is the output of block i, counted from 0: the residual stream after it, as repeng, steering-vectors and
llama.cpp count. The last one is before the final norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from neurofreeze.data.batches import pad
from neurofreeze.errors import ArchitectureError, ConfigError


def blocks(model: Any) -> list[torch.nn.Module]:
    """The decoder blocks of a transformers causal language model, wrapped by PEFT or not.

    Raises:
        ArchitectureError: if the model has no list of as many modules as its config has layers, or several.
    """
    count = model.config.get_text_config().num_hidden_layers
    found = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == count]
    # Nothing within a block is a decoder block, even where a block has as many experts as the model has layers.
    inner = {id(below) for module in found for below in module.modules() if below is not module}
    outermost = [module for module in found if id(module) not in inner]
    if len(outermost) != 1:
        raise ArchitectureError(
            f"{type(model).__name__} has {len(outermost)} lists of {count} modules, as many as its config has layers; "
            "expected one, the decoder blocks: steering and probes need to know where a layer ends"
        )
    return list(outermost[0])


def require_layer(layer: int, model: Any, key: str) -> int:
    """`layer` if the model has it.

    Raises:
        ConfigError: if not.
    """
    count = len(blocks(model))
    if not 0 <= layer < count:
        raise ConfigError(f"{key} is {layer}; expected 0 to {count - 1}, since the model has {count} layers")
    return layer


@contextmanager
def shifted(model: Any, shifts: Mapping[int, torch.Tensor]) -> Iterator[None]:
    """Within the block, add a vector to what a layer gives, at every position.

    Args:
        model: a transformers causal language model.
        shifts: layer -> [hidden]; rounded to the precision of the activations before it is added. A vector of zeros is
            left out, so that the model computes bit for bit what it computes without it.
    """
    modules = blocks(model)
    with ExitStack() as stack:
        for layer, shift in shifts.items():
            if shift.any():
                stack.callback(modules[layer].register_forward_hook(_add(shift)).remove)
        yield


@torch.no_grad()
def last_states(
    model: Any, rows: Sequence[list[int]], layers: Sequence[int], batch_size: int, pad_token_id: int | None
) -> torch.Tensor:
    """What layers give at the last token of each row of token ids: float32 [layers, rows, hidden], on the CPU."""
    modules = blocks(model)
    found = torch.empty(0)
    for batch in pad([(row, len(row)) for row in rows], pad_token_id, batch_size):
        seen: dict[int, torch.Tensor] = {}
        with ExitStack() as stack:
            for layer in layers:
                stack.callback(modules[layer].register_forward_hook(_keep(seen, layer)).remove)
            on_device = batch.to(model.device)
            model(input_ids=on_device.input_ids, attention_mask=on_device.attention_mask, use_cache=False)
        ends = on_device.attention_mask.sum(1) - 1
        for place, layer in enumerate(layers):
            states = seen[layer][torch.arange(len(ends), device=ends.device), ends].float().cpu()
            if not len(found):
                found = states.new_empty(len(layers), len(rows), states.shape[-1])
            found[place, batch.indices] = states
    return found


def _add(shift: torch.Tensor) -> Any:
    def hook(_: Any, inputs: Any, output: Any) -> Any:
        # Some blocks give a tuple with the hidden states first.
        hidden = output[0] if isinstance(output, tuple) else output
        moved = hidden + shift.to(hidden.device, hidden.dtype)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    return hook


def _keep(seen: dict[int, torch.Tensor], layer: int) -> Any:
    def hook(_: Any, inputs: Any, output: Any) -> None:
        seen[layer] = output[0] if isinstance(output, tuple) else output

    return hook
