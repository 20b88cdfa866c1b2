"""The parameters that belong to no neuron, in four kinds, and freezing them before an optimizer is built.

A mask names the kinds that it freezes besides its neurons (`NeuronMask.with_rest`), so that whatever is given the mask
holds and compares them as well: `freeze`, the trainer's callback, selective layers, `verify`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

    from neurofreeze.mask import NeuronMask
    from neurofreeze.neurons import NeuronMap

# Of a model's own input embeddings and those of positions; of norms; of the output embeddings; of all else, such as
# routers, biases of outputs and compressed attention.
KINDS = ("embeddings", "norms", "lm_head", "other")

Kinds = tuple[str, ...]


def kinds_of(model: Any) -> dict[str, Kinds]:
    """Parameter name -> its kinds, for every parameter of a transformers model, with storage or without.

    Told by the modules that hold it. A tied parameter has the kind of each module that it is in.
    """
    from torch import nn

    head = model.get_output_embeddings()

    def kind(module: Any) -> str:
        if module is head:
            return "lm_head"
        if isinstance(module, nn.Embedding):
            return "embeddings"
        # transformers' many RMS norms have no class in common.
        return "norms" if "Norm" in type(module).__name__ else "other"

    found: dict[int, set[str]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            found.setdefault(id(parameter), set()).add(kind(module))
    return {name: tuple(k for k in KINDS if k in found[id(p)]) for name, p in model.named_parameters()}


def require_tied(model: Any, neuron_map: NeuronMap, frozen: Collection[str]) -> None:
    """Raise FreezeError where a model has two parameters of one that its config ties, and that is to be frozen."""
    from neurofreeze.errors import FreezeError
    from neurofreeze.neurons import canonical_name

    own = {canonical_name(name) for name, _ in model.named_parameters()}
    for name, first in neuron_map.tied.items():
        if first in frozen and {name, first} <= own:
            raise FreezeError(
                f"{name} is a parameter of its own, but the config ties it to {first}, which the mask freezes; call "
                "model.tie_weights(), or load a checkpoint whose config has tie_word_embeddings=False"
            )


def freeze_rest(model: Any, mask: NeuronMask) -> Kinds:
    """Switch off the gradients of what `mask` freezes outside neurons, so that no optimizer gets it.

    Call it on the model as loaded, before the optimizer or the trainer is made: then neither weight decay nor state
    touches these parameters. `freeze` and `FreezeCallback` check them in any case; without this call they hold them by
    masked gradients, as they hold neurons, at the cost of their gradients and optimizer state. `selective` with
    train="unmasked" does this by itself.

    Args:
        model: a transformers causal language model; it is changed in place.
        mask: neurons of this model, and the kinds of other parameters to freeze.

    Returns:
        The names of the parameters.

    Raises:
        ConfigError: if two kinds share a parameter and only one of them is to be frozen.
        MaskError: if the mask is for another model.
        FreezeError: if the model has two parameters of one that its config ties.
    """
    from neurofreeze.neurons import NeuronMap, canonical_name

    neuron_map = NeuronMap.of(model, mask.config.granularity)  # type: ignore[arg-type]
    mask.check(neuron_map)
    held = {name for name in neuron_map.held(mask.config.rest) if name in neuron_map.rest}
    require_tied(model, neuron_map, held)
    names = []
    for name, parameter in model.named_parameters():
        if canonical_name(name) in held:
            parameter.requires_grad_(False)
            names.append(canonical_name(name))
    return tuple(names)
