"""A linear probe on what one layer gives out: how far the newest token's hidden state is on the harmful side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch

from neurofreeze.data.examples import Example
from neurofreeze.errors import GuardError
from neurofreeze.guard.triggers.base import Step
from neurofreeze.guard.triggers.fields import keys, require_settings, require_shapes
from neurofreeze.guard.triggers.newest import Place, States, decoder_layers, newest, while_answering

Kind = Literal["logistic", "mean-difference"]
_FOLDS = 5


@dataclass(frozen=True, eq=False)
class ProbeTrigger:
    """weight . h + bias, of the hidden state h that a decoder layer gives out.

    Attributes:
        module: the layer's name.
        weight: float32 [hidden size].
        bias: float32 [1].
        kind: "logistic": log-odds of harm by scikit-learn's LogisticRegression on standardised states;
            "mean-difference": the distance from halfway between the two means along their difference.
        prompts: keys of the prompts that it was fitted on.
    """

    module: str
    weight: torch.Tensor
    bias: torch.Tensor
    kind: Kind = "logistic"
    prompts: tuple[str, ...] = ()
    name: ClassVar[str] = "probe"
    needs_expert: ClassVar[bool] = False
    threshold: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        _require_kind(self.kind)
        require_shapes(self.name, {"weight": self.weight}, (self.weight.numel(),))
        require_shapes(self.name, {"bias": self.bias}, (1,))

    @classmethod
    def fit(
        cls,
        model: Any,
        tokenizer: Any,
        harmful: Sequence[Example],
        benign: Sequence[Example],
        *,
        layer: int | None = None,
        kind: Kind = "logistic",
        steps: int = 8,
        batch_size: int = 8,
    ) -> ProbeTrigger:
        """Fit the probe on the hidden states of each prompt's last token and the beginning of its answer.

        Args:
            model: the model to guard.
            tokenizer: its own, with a chat template.
            harmful: prompts, not those that the gate is calibrated on.
            benign: the same.
            layer: which decoder layer, from 0; None for the one whose largest values tell prompts apart best, by the
                area under the ROC curve in 5-fold cross-validation over prompts; the first where several are equal.
            kind: of probe.
            steps: how many tokens of each greedy answer, as the gate is to judge; the prompt's last is the first.
            batch_size: prompts at a time.

        Raises:
            GuardError: if there is no such layer or kind, or too few prompts to choose a layer.
            DataError: if there are no prompts.
        """
        _require_kind(kind)
        layers = decoder_layers(model)
        if layer is not None and (type(layer) is not int or not 0 <= layer < len(layers)):
            raise GuardError(f"layer is {layer!r}; expected one of 0 to {len(layers) - 1}")
        if layer is None and min(len(harmful), len(benign)) < _FOLDS:
            raise GuardError(
                f"there are {len(harmful)} harmful and {len(benign)} benign prompts; expected at least {_FOLDS} of "
                "each to choose a layer by cross-validation, or give layer="
            )
        places = [Place(name, "output") for name in (layers if layer is None else [layers[layer]])]
        bad, good = (while_answering(model, tokenizer, found, places, steps, batch_size) for found in (harmful, benign))
        samples = {place: _Samples.of(bad[place], good[place]) for place in places}
        best = max(places, key=lambda place: _auc(samples[place], kind)) if layer is None else places[0]
        weight, bias = _direction(samples[best], kind)
        as_tensor = torch.from_numpy(weight).float(), torch.tensor([bias], dtype=torch.float32)
        return cls(best.module, *as_tensor, kind, keys(harmful, benign))

    @contextmanager
    def watch(self, model: Any, batch: int, live: Callable[[], bool]) -> Iterator[_Watch]:
        """Watch the layer's output."""
        place = Place(self.module, "output")
        with newest(model, {place: None}, batch, live) as found:
            yield _Watch(self, found, place)

    def settings(self) -> dict[str, Any]:
        """Where and what kind it is, and on what it was fitted."""
        return {"module": self.module, "kind": self.kind, "prompts": list(self.prompts)}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weight and bias."""
        return {"weight": self.weight, "bias": self.bias}

    @classmethod
    def load(cls, settings: dict[str, Any], tensors: dict[str, torch.Tensor]) -> ProbeTrigger:
        """The trigger of these settings and tensors.

        Raises:
            GuardError: if they do not belong together.
        """
        require_settings(cls.name, settings, "module", "kind", "prompts")
        if set(tensors) != {"weight", "bias"}:
            raise GuardError(f"trigger 'probe': found tensors {sorted(tensors)}; expected weight and bias")
        return cls(settings["module"], **tensors, kind=settings["kind"], prompts=tuple(settings["prompts"]))


class _Watch:
    def __init__(self, trigger: ProbeTrigger, found: dict[Place, torch.Tensor], place: Place) -> None:
        self.found, self.place = found, place
        self.weight, self.bias = trigger.weight, trigger.bias

    def values(self, step: Step) -> torch.Tensor:
        """The probe of the judged rows."""
        state = self.found[self.place].float()
        if self.weight.device != state.device:
            self.weight, self.bias = self.weight.to(state.device), self.bias.to(state.device)
        return (state @ self.weight + self.bias)[step.rows]

    def fired(self, rows: list[int]) -> None:
        """A probe keeps no memory of it."""


def _require_kind(kind: str) -> None:
    if kind not in ("logistic", "mean-difference"):
        raise GuardError(f"kind is {kind!r}; expected 'logistic' or 'mean-difference'")


class _Samples(NamedTuple):
    """Hidden states float64 [tokens, hidden size], whether each is of a harmful prompt, and of which prompt."""

    states: Any
    harm: Any
    prompts: Any

    @classmethod
    def of(cls, bad: States, good: States) -> _Samples:
        owners = [bad.prompts.numpy(), good.prompts.numpy() + int(bad.prompts.max()) + 1]
        states = np.concatenate([bad.values, good.values]).astype(np.float64)
        return cls(states, np.repeat([1, 0], [len(bad.values), len(good.values)]), np.concatenate(owners))

    def part(self, index: Any) -> _Samples:
        return _Samples(*(array[index] for array in self))


def _direction(samples: _Samples, kind: Kind) -> tuple[Any, float]:
    """Weight float64 [hidden size] and bias."""
    states, harm, _ = samples
    if kind == "mean-difference":
        bad, good = states[harm == 1].mean(0), states[harm == 0].mean(0)
        weight = (bad - good) / max(float(np.linalg.norm(bad - good)), 1e-12)
        return weight, -float(weight @ (bad + good) / 2)
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(states)
    # More dimensions than prompts separate any labels: regularised, and equal weight to both sets.
    fitted = LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000).fit(scaler.transform(states), harm)
    weight = fitted.coef_[0] / scaler.scale_
    return weight, float(fitted.intercept_[0] - weight @ scaler.mean_)


def _auc(samples: _Samples, kind: Kind) -> float:
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold

    areas = []
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=0)
    for train, test in folds.split(samples.states, samples.harm, samples.prompts):
        weight, bias = _direction(samples.part(train), kind)
        held = samples.part(test)
        values, harm = held.states @ weight + bias, {}
        largest: dict[int, float] = {}
        for prompt, value, label in zip(held.prompts.tolist(), values.tolist(), held.harm.tolist(), strict=True):
            largest[prompt] = max(value, largest.get(prompt, value))
            harm[prompt] = label
        areas.append(roc_auc_score([*harm.values()], [*largest.values()]))
    return float(np.mean(areas))
