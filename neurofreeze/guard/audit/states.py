"""The states that an audit compares with the original: one a strength, one a size of pruning, else one.

A state is cheap to name: settings and files are read, but no model is loaded before it is applied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from neurofreeze.checkpoints import stamps
from neurofreeze.config.audit import AuditConfig
from neurofreeze.data.examples import Example
from neurofreeze.errors import ConfigError, MaskError
from neurofreeze.evaluation.ablation import ablated
from neurofreeze.guard.audit.gated import gate_digest, load_gated
from neurofreeze.guard.audit.identity import identity
from neurofreeze.guard.audit.loading import CONFIG, load_adapted, load_tuned
from neurofreeze.guard.steering.vector import SteeringVector
from neurofreeze.mask import NeuronMask
from neurofreeze.models.load import load_config
from neurofreeze.neurons import NeuronMap
from neurofreeze.strategies.scores import NeuronScores

Applied = Callable[[Any], AbstractContextManager[Any]]


@dataclass(frozen=True)
class State:
    """A model under an intervention.

    Attributes:
        name: of its stage.
        label: for readers.
        series: the line of a figure that it is on.
        x: where on it: a strength, or a share of neurons; None if there is one state only.
        settings: all that it depends on beside the original, JSON-serialisable.
        applied: from the original model, a block that yields the changed one; may be entered again and again, and
            leaves the original as it was.
        neurons: how many are ablated.
        control: the name of the state without as many random neurons at each site.
    """

    name: str
    label: str
    series: str
    settings: dict[str, Any]
    applied: Applied
    x: float | None = None
    neurons: int = 0
    control: str | None = None


def steered(config: AuditConfig, vector: SteeringVector) -> list[State]:
    """One state a strength."""
    unit: Any = config.steering.unit

    def applied(strength: float) -> Applied:
        return lambda model: vector.applied(model, strength, unit)

    return [
        State(
            name=f"steering-{strength:g}",
            label=f"strength {strength:g}",
            series="steered",
            settings={
                "vector": vector.digest,
                "norms": [list(found) for found in vector.config.hidden_norms.items()],
                "strength": strength,
                "unit": unit,
            },
            applied=applied(strength),
            x=strength,
        )
        for strength in config.strengths
    ]


def masked(config: AuditConfig, folder: Path) -> list[State]:
    """The model without the neurons of a mask.

    Raises:
        MaskError: if the mask is for another model.
    """
    return [_ablated("mask", "without the mask's neurons", "ablated", _mask(config, folder))]


def pruned(config: AuditConfig, folder: Path) -> list[State]:
    """The model without the mask's neurons of the highest scores, and without as many random ones at each site.

    Raises:
        MaskError: if the mask is for another model, or has no scores.
        ConfigError: if a share is less than one neuron of every kind.
    """
    mask = _mask(config, folder)
    if mask.scores is None:
        raise MaskError(
            f"{config.mask} has no scores to rank its neurons by; choose them with a rule that keeps scores, "
            "`neurofreeze select method=top`"
        )
    scores = NeuronScores(_neuron_map(mask, folder), mask.scores, mask.config.strategy)
    found = []
    for share in config.prune.shares:
        top = scores.top(share)
        if top.count == 0:
            raise ConfigError(f"prune.shares has {share:g}, less than one neuron of {scores.neuron_map.total}")
        percent = f"{100 * share:g} %"
        draws = NeuronMask.random_draws(top, config.seed, config.prune.draws)
        names = [""] if len(draws) == 1 else [f", draw {number}" for number in range(len(draws))]
        control = f"random-{share:g}-0"
        found.append(_ablated(f"top-{share:g}", f"top {percent}", "highest scores", top, share, control))
        found += [
            _ablated(f"random-{share:g}-{number}", f"random {percent}{told}", f"random{told}", draw, share)
            for number, (draw, told) in enumerate(zip(draws, names, strict=True))
        ]
    return found


def tuned(folder: Path) -> list[State]:
    """A checkpoint in place of the original, beside which it is loaded."""
    load = cache(partial(load_tuned, folder))
    settings = {"folder": str(folder), **identity(folder)}
    return [State("checkpoint", "fine-tuned", "fine-tuned", settings, lambda _: nullcontext(load()))]


def adapted(folder: Path, base: Path) -> list[State]:
    """A PEFT adapter on a second copy of the original."""
    load = cache(partial(load_adapted, folder, base))
    # The config scales the weights: with another lora_alpha it is another adapter.
    config = hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest()
    settings = {"folder": str(folder), "files": stamps(folder), "config": config}
    return [State("adapter", "with the adapter", "adapted", settings, lambda _: nullcontext(load()))]


def gated(folder: Path, base: Path, unseen: Sequence[Example]) -> list[State]:
    """A gate around the original; `unseen`: the prompts that it is measured on."""
    load = cache(partial(load_gated, folder, base, unseen=unseen))
    settings = {"folder": str(folder), "gate": gate_digest(folder)}
    return [State("gate", "with the gate", "gated", settings, lambda model: nullcontext(load(model=model)))]


def _ablated(
    name: str, label: str, series: str, mask: NeuronMask, share: float | None = None, control: str | None = None
) -> State:
    @contextmanager
    def applied(model: Any) -> Iterator[Any]:
        with ablated(model, mask):
            yield model

    return State(name, label, series, {"mask": mask.digest}, applied, share, mask.count, control)


def _mask(config: AuditConfig, folder: Path) -> NeuronMask:
    mask = NeuronMask.from_pretrained(str(config.mask))
    mask.check(_neuron_map(mask, folder))
    return mask


def _neuron_map(mask: NeuronMask, folder: Path) -> NeuronMap:
    return NeuronMap.of(load_config(folder), mask.config.granularity)  # type: ignore[arg-type]
