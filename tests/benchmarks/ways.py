"""Ways to train one model: all of it, with neurons frozen, with selective layers, with adapters of PEFT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, ShiraConfig, get_peft_model
from torch import nn

import neurofreeze as nf
from neurofreeze import Freezer, NeuronMap, NeuronMask
from neurofreeze.neurons import canonical_name
from neurofreeze.selective_layers.modules import TRAINED, Selective
from tests.benchmarks.models import Shape

LORA_RANK = 8
_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_SEED = 0  # of the mask
_CLIP = 1.0


@dataclass(frozen=True)
class Way:
    """What trains, and by what: "full", "freeze", "selective", "lora" or "shira".

    `share` is that of the neurons that train ("shira": as many parameters as selective layers with that share), `rest`
    whether the parameters that belong to no neuron train too.
    """

    kind: str
    share: float = 1.0
    rest: bool = True

    @property
    def label(self) -> str:
        return {"lora": f"LoRA r={LORA_RANK}", "shira": "SHiRA", "full": "full"}.get(
            self.kind, f"{self.kind} {100 * self.share:g}%"
        )


@dataclass(frozen=True)
class Setting:
    """What all ways have in common."""

    shape: Shape
    device: str
    compiled: bool = False
    fused: bool = False

    def model(self) -> Any:
        """The same weights each time: float32 on a CPU, bfloat16 on a GPU."""
        return self.shape.model().to(self.device, torch.bfloat16 if self.device == "cuda" else torch.float32)

    def ids(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, self.shape.vocabulary, (1, self.shape.tokens), generator=generator).to(self.device)


class Training:
    """One way of training, ready to step.

    Attributes:
        model: as prepared: selective, or wrapped by PEFT.
        freezer: what holds neurons frozen, if that is the way.
    """

    def __init__(self, way: Way, setting: Setting) -> None:
        self.way = way
        self.setting = setting
        self.freezer: Freezer | None = None
        model = setting.model()
        self.map = NeuronMap.of(model)
        self.frozen = NeuronMask.none(self.map)
        if way.kind in ("freeze", "selective"):
            self.frozen = ~NeuronMask.random(self.map, way.share, _SEED)
        self.model = _prepared(model, way, self.map, self.frozen)
        self._trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self._trained, lr=1e-4, weight_decay=0.1, fused=setting.fused or None)
        if way.kind == "freeze":
            self.freezer = nf.freeze(self.model, self.optimizer, self.frozen)
        self._forward: Callable[..., Any] = torch.compile(self.model) if setting.compiled else self.model

    def step(self, ids: torch.Tensor) -> None:
        self._forward(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, _CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def sizes(self) -> dict[str, int]:
        """Parameters that train and bytes of optimizer state: of everything, and of neurons' weights alone."""
        found = {"parameters": 0, "neuron_parameters": 0, "optimizer": 0, "neuron_optimizer": 0}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                state = self.optimizer.state[parameter].values()
                held = sum(value.nbytes for value in state if torch.is_tensor(value))
                of_neurons = canonical_name(name).removesuffix(TRAINED) not in self.map.rest
                for key, amount in (("parameters", parameter.numel()), ("optimizer", held)):
                    found[key] += amount
                    found[f"neuron_{key}"] += amount * of_neurons
        if self.freezer is not None:
            frozen = self.map.elements(self.frozen.bits)
            found["parameters"] -= frozen
            found["neuron_parameters"] -= frozen
        return found

    def engine(self) -> str:
        """What enforces that only a part trains, as found in the model; "" if all of it trains."""
        if self.freezer is not None:
            return f"mask, {self.freezer.engine.name}"
        if hasattr(self.model, "peft_type"):
            return f"PEFT {self.model.peft_type.value}"
        selective = sum(isinstance(module, Selective) for module in self.model.modules())
        return f"{selective} selective layers" if selective else ""

    def check(self) -> None:
        """Compare the weights with those at the start.

        Raises:
            RuntimeError: if an element moved that this way should not train, or a tensor did not move that it should.
        """
        if self.freezer is not None:
            self.freezer.check()
        now = {canonical_name(name): value for name, value in self.model.state_dict().items()}
        before = self.setting.model().state_dict()
        kept = self._kept()
        for name, start in before.items():
            moved = now[name] != start
            keep = kept.get(name)
            if keep is None:
                keep = torch.full_like(moved, not self._trains(name))
            if (moved & keep).any():
                raise RuntimeError(f"{self.way.label}: {int((moved & keep).sum())} frozen elements of {name} moved")
            if not keep.all() and not (moved & ~keep).any():
                raise RuntimeError(f"{self.way.label}: {name} did not train")
        for name in now.keys() - before.keys():
            if "lora_A" not in name and not now[name].any():
                raise RuntimeError(f"{self.way.label}: {name} did not train")

    def _kept(self) -> dict[str, torch.Tensor]:
        if self.way.kind not in ("freeze", "selective"):
            return {}
        return {name: mask.to(self.setting.device) for name, mask in self.frozen.dense(self.model).items()}

    def _trains(self, name: str) -> bool:
        if self.way.kind in ("lora", "shira"):
            return False
        return self.way.rest or name not in self.map.rest


def ways(few: float = 0.01, many: float = 0.28) -> list[Way]:
    """What is compared by default: `few` train alone, `many` train along with all that belongs to no neuron."""
    return [
        Way("full"),
        Way("freeze", few, rest=False),
        Way("selective", few, rest=False),
        Way("lora"),
        Way("shira", few),
        Way("freeze", many),
        Way("selective", many),
    ]


def _prepared(model: Any, way: Way, neuron_map: NeuronMap, frozen: NeuronMask) -> Any:
    if way.kind == "freeze" and not way.rest:
        for name in neuron_map.rest:
            model.get_parameter(name).requires_grad_(False)
    if way.kind == "selective":
        return nf.selective(model, frozen, train="unmasked") if way.rest else nf.selective(model, ~frozen)
    if way.kind == "lora":
        config = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=_LAYERS)
        return get_peft_model(model, config, autocast_adapter_dtype=False)
    if way.kind == "shira":
        elements = neuron_map.elements(NeuronMask.random(neuron_map, way.share, _SEED).bits)
        linear = [module for module in model.model.layers.modules() if isinstance(module, nn.Linear)]
        rank = max(1, round(elements / sum(module.in_features + module.out_features for module in linear)))
        config = ShiraConfig(r=rank, random_seed=0, target_modules=_LAYERS)
        return get_peft_model(model, config, autocast_adapter_dtype=False)
    return model
