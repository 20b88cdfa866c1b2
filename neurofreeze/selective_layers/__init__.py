"""Selective layers: only what trains has gradients and optimizer state.

`freeze` masks the gradients of a dense model; here frozen weights have none. One meaning, two costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MethodType
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from neurofreeze.errors import FreezeError, MaskError
from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap, Selection, canonical_name
from neurofreeze.rest import KINDS, require_tied
from neurofreeze.selective_layers.lines import Lines
from neurofreeze.selective_layers.modules import TRAINED, Selective, make_ordinary, make_selective
from neurofreeze.selective_layers.sharded import assembled, at_hand
from neurofreeze.verification import loaded_fingerprint

__all__ = ["merge", "selective"]


def selective(model: Any, mask: NeuronMask, train: Literal["masked", "unmasked"] = "masked") -> Any:
    """Let only some neurons of `model` train, by layers that need no gradient or optimizer state for the others.

    Call it on the model as loaded, before it is wrapped or given to a trainer or an optimizer. Names, outputs and
    saved checkpoints stay those of the ordinary model; `merge` makes it one again.

    Args:
        model: a transformers causal language model; it is changed in place.
        mask: neurons of this model.
        train: "masked": the mask's neurons train, and nothing else. "unmasked": the mask's neurons are frozen and
            everything else trains, embeddings, norms and lm_head too unless the mask names them, as under `freeze`.

    What frozen and trainable neurons share, such as a KV head, stays frozen, and so does what has requires_grad off.

    Returns:
        The model.

    Raises:
        MaskError: if the mask is for another model or other weights, or nothing would train or be frozen.
        ConfigError: if tied parameters are to be frozen and to train.
        FreezeError: if the model is selective already, wrapped or adapted by PEFT, or has weights that cannot be
            divided.
    """
    if train not in ("masked", "unmasked"):
        raise FreezeError(f"train is {train!r}; expected 'masked' or 'unmasked'")
    neuron_map = NeuronMap.of(model, mask.config.granularity)  # type: ignore[arg-type]
    mask.check(neuron_map)
    _require_weights_of_the_mask(model, mask)
    frozen = mask if train == "unmasked" else (~mask).with_rest(*KINDS)
    if frozen.count in (0, frozen.total):
        raise MaskError(f"the mask chooses {mask.count:,} of {mask.total:,} neurons, so there is nothing to divide")
    return train_lines(model, neuron_map, frozen.select(neuron_map))


def merge(model: Any) -> Any:
    """Make a selective model an ordinary one again, with what it learned; returns it.

    Raises:
        FreezeError: if it is not selective, or sharded by FSDP2 or ZeRO-3: save it and load what was saved.
    """
    found = model
    while hasattr(found, "module") or hasattr(found, "_orig_mod"):
        found = found.module if hasattr(found, "module") else found._orig_mod
    if not hasattr(found, "before_selective"):
        raise FreezeError("the model has no selective layers; expected one that nf.selective changed")
    _refuse_adapters(found)
    if any(hasattr(p, "ds_id") or hasattr(p, "device_mesh") for p in found.parameters()):
        raise FreezeError("a sharded model cannot be merged in place; save_pretrained writes the merged weights")
    for module in list(found.modules()):
        if isinstance(module, Selective):
            make_ordinary(module)
    for name, parameter in found.named_parameters():
        parameter.requires_grad_(canonical_name(name) in found.before_selective)
    for key, hook in list(found._forward_pre_hooks.items()):
        if hook is _refuse_changes:
            del found._forward_pre_hooks[key]
    del found.before_selective, found.selective_frozen, found.save_pretrained
    return model


def has_selective_layers(model: Any, frozen: Mapping[str, Selection]) -> bool:
    """Whether `model`, wrapped or not, has selective layers.

    Raises:
        FreezeError: if they train lines that should be `frozen`, by parameter name, or PEFT put adapters over them.
    """
    for path, module in model.named_modules():
        if not isinstance(module, Selective):
            continue
        for leaf, lines in module.selective_lines.items():
            name = canonical_name(f"{path}.{leaf}")
            both = np.intersect1d(lines.selection.index, frozen[name].index) if name in frozen else ()
            if len(both):
                raise FreezeError(
                    f"selective layers train {len(both)} lines of {name} that the mask freezes; give both the same "
                    "mask with train='unmasked', or freeze ~mask with train='masked'"
                )
    found = [module for module in model.modules() if hasattr(module, "before_selective")]
    for module in found:
        _refuse_adapters(module)
    return bool(found)


def train_lines(model: Any, neuron_map: NeuronMap, frozen: dict[str, Selection]) -> Any:
    """Let everything train but for these lines of parameters; returns the model.

    Args:
        model: as for `selective`.
        neuron_map: its neurons.
        frozen: parameter name -> the lines that stay frozen; all of them where a parameter belongs to no neuron.
    """
    _require_bare(model)
    require_tied(model, neuron_map, frozen)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    still = set(frozen) & set(neuron_map.rest)
    frozen = {name: selection for name, selection in frozen.items() if name not in still}
    _require_divisible(parameters, frozen, neuron_map.shapes)
    before = {name for name, parameter in parameters.items() if parameter.requires_grad}
    by_module: dict[str, dict[str, Lines]] = {}
    for name, selection in frozen.items():
        lines = Lines.without(selection, neuron_map.shapes[name])
        if len(lines) and name in before:
            module, _, leaf = name.rpartition(".")
            by_module.setdefault(module, {})[leaf] = lines
        else:
            still.add(name)
    if not by_module and not before - still:
        raise FreezeError("nothing would train: requires_grad is off for all weights that the neurons are in")
    for name in still:
        parameters[name].requires_grad_(False)
    for name, lines_of in by_module.items():
        with assembled([parameters[f"{name}.{leaf}"] for leaf in lines_of]):
            make_selective(model.get_submodule(name), lines_of)
    model.before_selective = before
    model.selective_frozen = still | {f"{name}.{leaf}" for name, lines_of in by_module.items() for leaf in lines_of}
    model.save_pretrained = MethodType(_save_pretrained, model)
    model.register_forward_pre_hook(_refuse_changes)
    return model


def _save_pretrained(
    model: Any, save_directory: Any, is_main_process: bool = True, state_dict: Any = None, **options: Any
) -> None:
    """The model's own `save_pretrained`, of merged weights."""
    if state_dict is not None:
        state_dict = merged(model, state_dict)
    type(model).save_pretrained(model, save_directory, is_main_process, state_dict, **options)


def merged(model: Any, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A selective model's gathered parameters, as ZeRO-3 collects them, as the ordinary model's state dict."""
    found = dict(state_dict)
    for prefix, module in model.named_modules():
        if isinstance(module, Selective):
            for leaf, lines in module.selective_lines.items():
                name = f"{prefix}.{leaf}"
                trained = found.pop(name + TRAINED, None)
                if trained is not None:
                    found[name] = lines.put(found[name], trained)
    return found


def _refuse_changes(model: Any, *_: Any) -> None:
    """Before each forward pass: nothing trains that should not."""
    _refuse_adapters(model)
    if not model.training:
        return
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and canonical_name(name) in model.selective_frozen:
            raise FreezeError(
                f"requires_grad was switched on for {name}, which selective layers keep frozen in whole or in part; "
                "leave it off, or nf.merge the model first to train all of it"
            )


def _refuse_adapters(model: Any) -> None:
    # PEFT trains adapters over frozen lines too, and stops what should train. It asks nobody when it wraps a model.
    if hasattr(model, "peft_config"):
        raise FreezeError(
            "selective layers and adapters of PEFT do not train together: the adapters would change what is frozen. "
            "With adapters use nf.freeze or FreezeCallback; PeftModel.unload() takes them away"
        )


def _require_bare(model: Any) -> None:
    _refuse_adapters(model)
    if hasattr(model, "before_selective"):
        raise FreezeError("the model is selective already; nf.merge makes it ordinary again")
    if not isinstance(model, PreTrainedModel) or any(hasattr(p, "device_mesh") for p in model.parameters()):
        raise FreezeError(
            f"expected a transformers model that is not wrapped or sharded yet, found {type(model).__name__}; call "
            "nf.selective before DDP, fully_shard, deepspeed.initialize, torch.compile or a trainer gets it"
        )


def _require_weights_of_the_mask(model: Any, mask: NeuronMask) -> None:
    if mask.config.fingerprint is None or not all(at_hand(p) and not hasattr(p, "ds_id") for p in model.parameters()):
        return  # where ranks hold parts, FreezeCallback compares them
    mask.check_weights(loaded_fingerprint(model, mask))


def _require_divisible(
    parameters: dict[str, torch.nn.Parameter], frozen: dict[str, Selection], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    names: dict[int, list[str]] = {}
    for name, parameter in parameters.items():
        names.setdefault(id(parameter), []).append(name)
    for name in frozen:
        if name not in parameters:
            raise FreezeError(f"the model has no parameter {name}, which its neurons are in; was it changed?")
        found: Any = parameters[name]
        shape = tuple(getattr(found, "ds_shape", found.shape))
        if not found.is_floating_point() or shape != shapes[name]:
            raise FreezeError(
                f"{name} is {found.dtype} of shape {shape}; selective layers need ordinary floating point weights, "
                f"here of shape {shapes[name]}. Quantized models train by adapters, see docs/lora.md"
            )
        tied = names[id(parameters[name])]
        if len(tied) > 1:
            raise FreezeError(f"{' and '.join(tied)} are one parameter; neurons that share weights cannot be divided")
