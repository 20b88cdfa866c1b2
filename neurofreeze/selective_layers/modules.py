"""Modules of which only some lines train. The object stays the same and so do its names, only its class changes.

While a module is selective it has one parameter more for each that trains in part: `weight_trained` beside `weight`,
with the lines of `Lines`. Its state dict is the ordinary one all the same, and so is what `module.weight` reads as.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from neurofreeze.errors import FreezeError
from neurofreeze.selective_layers.lines import Lines
from neurofreeze.selective_layers.product import linear
from neurofreeze.selective_layers.sharded import at_hand, combined, gathered, like, partitioned, require_whole, write

TRAINED = "_trained"


class Selective:
    """What selective modules have in common; mixed into the class of the module that one is made of."""

    selective_lines: dict[str, Lines]  # by the name of their parameter

    def pairs(self) -> list[tuple[str, Lines, torch.Tensor, torch.Tensor]]:
        """(name, lines, parameter, trained values) of each parameter that trains in part."""
        own: dict[str, torch.Tensor] = self._parameters  # type: ignore[attr-defined]
        return [(name, lines, own[name], own[name + TRAINED]) for name, lines in self.selective_lines.items()]

    def whole(self, name: str) -> torch.Tensor:
        """A parameter with its trained lines in it, differentiable; while it is in shards, the parameter itself."""
        own: dict[str, torch.Tensor] = self._parameters  # type: ignore[attr-defined]
        weight, trained = own[name], own[name + TRAINED]
        return self.selective_lines[name].put(weight, trained) if at_hand(weight) and at_hand(trained) else weight

    def write(self) -> None:
        """Write the trained lines into their parameters."""
        for _, lines, weight, trained in self.pairs():
            write(lines, weight, trained)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        for name, lines, weight, trained in self.pairs():
            if partitioned(weight) or partitioned(trained):
                continue  # DeepSpeed's own checkpoints keep both; what it gathers for others is merged when saved
            del destination[prefix + name + TRAINED]
            if weight.dtype != trained.dtype:
                # Trainers widen what trains to float32 and leave the rest: resuming needs all the bits there are.
                destination[prefix + name] = combined(lines, weight.detach().to(trained.dtype), trained)
            else:
                write(lines, weight, trained)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, lines, _, trained in self.pairs():
            whole, given = state_dict.get(prefix + name), state_dict.get(prefix + name + TRAINED)
            # torch.distributed.checkpoint fills in the model's own parameters where a state dict lacks them.
            if whole is not None and (given is None or given is trained):
                state_dict[prefix + name + TRAINED] = like(trained, lines.take(gathered(whole)))
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]


class _Product(Selective):
    """A linear layer whose backward pass forms the gradient of the lines that train, and no other."""

    transposed = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(self, x, self.transposed)


class _TransposedProduct(_Product):
    transposed = True


class _Whole(Selective):
    """Any other module: its parameters are put together anew for each forward pass, and so is their whole gradient."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # Once a pass: code that goes expert by expert reads its parameter again for each.
        found = {}
        for name, lines, weight, trained in self.pairs():
            require_whole(weight)
            found[name] = lines.put(weight, trained)
        self.__dict__["_whole"] = found
        try:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            del self.__dict__["_whole"]

    def whole(self, name: str) -> torch.Tensor:
        kept = self.__dict__.get("_whole", {})
        return kept[name] if name in kept else super().whole(name)


def make_selective(module: torch.nn.Module, lines: dict[str, Lines]) -> None:
    """Let only these lines of the module's parameters train; parameters not named stay as they are."""
    for name, chosen in lines.items():
        weight: Any = module._parameters[name]
        weight.requires_grad_(False)
        module.register_parameter(name + TRAINED, torch.nn.Parameter(chosen.take(gathered(weight))))
    module.__dict__["selective_lines"] = lines
    ordinary: Any = type(module)
    module.__class__ = _selective(ordinary, tuple(lines))


def make_ordinary(module: Any) -> None:
    """Write the trained lines back and give the module its own class again."""
    module.write()
    for name in module.selective_lines:
        del module._parameters[name + TRAINED]
    del module.__dict__["selective_lines"]
    module.__class__ = type(module).__bases__[1]


@cache
def _selective(ordinary: Any, names: tuple[str, ...]) -> Any:
    if ordinary.forward is torch.nn.Linear.forward:
        base: type = _Product
    elif ordinary.forward is Conv1D.forward:
        base = _TransposedProduct
    else:
        base = _Whole
    # Code that reads a parameter by attribute, as the experts' does, gets what the last step made of it.
    return type(f"Selective{ordinary.__name__}", (base, ordinary), {name: _reading(name) for name in names})


def _reading(name: str) -> property:
    def read(module: Selective) -> torch.Tensor:
        return module.whole(name)

    def replace(module: Selective, value: torch.Tensor) -> None:
        # nn.Module sets parameters itself; what comes here is a tensor in the place of one.
        raise FreezeError(
            f"something puts another tensor in the place of {name} of a {type(module).__name__}, as FSDP1 does; "
            "selective layers run under FSDP2, or use nf.freeze"
        )

    return property(read, replace)
