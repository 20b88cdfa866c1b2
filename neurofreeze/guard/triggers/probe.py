"""A linear probe on what one layer gives out: how far the newest token's hidden state is on the harmful side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from neurofreeze.data.examples import Example
from neurofreeze.errors import GuardError
from neurofreeze.guard.triggers.base import Step
from neurofreeze.guard.triggers.fields import keys, require_settings, require_shapes
from neurofreeze.guard.triggers.newest import Place, at_prompts, decoder_layers, newest

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
        batch_size: int = 8,
    ) -> ProbeTrigger:
        """Fit the probe on the hidden states at each prompt's last token, from one forward pass.

        Args:
            model: the model to guard.
            tokenizer: its own, with a chat template.
            harmful: prompts, not those that the gate is calibrated on.
            benign: the same.
            layer: which decoder layer, from 0; None for the one with the largest area under the ROC curve in 5-fold
                cross-validation on these prompts, the first where several are equal.
            kind: of probe.
            batch_size: prompts at a time.

        Raises:
            GuardError: if there is no such layer or kind, or too few prompts to choose a layer.
            DataError: if there are no prompts.
        """
        _require_kind(kind)
        layers = decoder_layers(model)
        if layer is not None and not 0 <= layer < len(layers):
            raise GuardError(f"layer is {layer}; expected one of 0 to {len(layers) - 1}")
        if layer is None and min(len(harmful), len(benign)) < _FOLDS:
            raise GuardError(
                f"there are {len(harmful)} harmful and {len(benign)} benign prompts; expected at least {_FOLDS} of "
                "each to choose a layer by cross-validation, or give layer="
            )
        places = [Place(name, "output") for name in (layers if layer is None else [layers[layer]])]
        bad, good = (at_prompts(model, tokenizer, found, places, batch_size) for found in (harmful, benign))
        states = {place: np.concatenate([bad[place], good[place]]).astype(np.float64) for place in places}
        harm = np.repeat([1, 0], [len(harmful), len(benign)])
        best = max(places, key=lambda place: _auc(states[place], harm, kind)) if layer is None else places[0]
        weight, bias = _direction(states[best], harm, kind)
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


def _direction(states: Any, harm: Any, kind: Kind) -> tuple[Any, float]:
    """Weight float64 [hidden size] and bias of a probe of harm, 0 or 1 [prompts], in states [prompts, hidden size]."""
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


def _auc(states: Any, harm: Any, kind: Kind) -> float:
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    areas = []
    for train, test in StratifiedKFold(_FOLDS, shuffle=True, random_state=0).split(states, harm):
        weight, bias = _direction(states[train], harm[train], kind)
        areas.append(roc_auc_score(harm[test], states[test] @ weight + bias))
    return float(np.mean(areas))
