"""Verification: compare two checkpoints bit by bit, without loading a model."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurofreeze.checkpoints import open_parameters, read_config
from neurofreeze.errors import MaskError, ModelError
from neurofreeze.files import write_atomically
from neurofreeze.geometry import Block, whole
from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap, Selection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import torch

    from neurofreeze.conversion import Parameters
    from neurofreeze.pieces import Piece


@dataclass(frozen=True)
class ParameterCheck:
    """One parameter in both checkpoints: element counts, and digests of its frozen elements."""

    name: str
    shape: tuple[int, ...]
    frozen: int
    changed: int
    trainable: int
    trainable_changed: int
    base_digest: str
    tuned_digest: str


@dataclass(frozen=True)
class Verification:
    """Outcome of `verify`: `frozen` elements in all, of which `changed` differ in at least one bit."""

    base: str
    tuned: str
    mask: str
    frozen: int
    changed: int
    trainable: int
    trainable_changed: int
    base_fingerprint: str
    tuned_fingerprint: str
    parameters: list[ParameterCheck] = field(repr=False)
    only_in_one: list[str]
    rest: tuple[str, ...] = ()  # kinds of parameters in no neuron that are among the frozen ones

    @property
    def ok(self) -> bool:
        """True if no frozen bit differs."""
        return self.changed == 0

    @property
    def broken(self) -> list[ParameterCheck]:
        """The parameters with changed frozen elements."""
        return [check for check in self.parameters if check.changed]

    def save(self, path: Path) -> None:
        """Write verification.json."""
        content: dict[str, Any] = {"ok": self.ok, **asdict(self)}
        write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())

    def __str__(self) -> str:
        verdict = "intact" if self.ok else f"{self.changed:,} CHANGED in {len(self.broken)} parameters"
        rest = f" ({', '.join(self.rest)} among them)" if self.rest else ""
        return (
            f"{self.frozen:,} frozen elements{rest}: {verdict}; "
            f"{self.trainable_changed:,} of {self.trainable:,} trainable elements changed"
        )


def verify(
    base: str | Path, tuned: str | Path, mask: NeuronMask | str | Path, progress: Callable[[], None] | None = None
) -> Verification:
    """Compare two checkpoints element by element, bit by bit, streaming one parameter at a time.

    Both folders hold ordinary Hugging Face checkpoints (safetensors, sharded or not; experts in stacks or one by one).
    Parameters are those of the model that the base's config describes, under its names. Where precisions differ, both
    are widened to float32 first, which is exact; a frozen element that lost bits to a narrower format counts as
    changed. -0.0 and 0.0 differ. What the base ties, such as lm_head to the embeddings, is compared under each name
    that the tuned checkpoint has for it, and must not be missing there where its config does not tie it.

    Args:
        base: the checkpoint before fine-tuning.
        tuned: the checkpoint after it.
        mask: the neurons that should be the same in both, and what else (`NeuronMask.with_rest`).
        progress: called once per parameter compared.

    Raises:
        MaskError: if the mask does not fit the base, was made on other weights, or chooses no neuron.
        ModelError: if a checkpoint is unreadable, lacks a masked parameter or has it in another shape, or if something
            else would be loaded from the tuned one than is compared.
    """
    if not isinstance(mask, NeuronMask):
        mask = NeuronMask.from_pretrained(mask)
    config = read_config(base)
    neuron_map = NeuronMap.of(config, mask.config.granularity)  # type: ignore[arg-type]
    selections = mask.select(neuron_map)
    if not selections:
        raise MaskError("the mask chooses no neuron, so there is nothing to verify")
    with open_parameters(base, config) as before, open_parameters(tuned, config) as after:
        for folder, weights in ((base, before), (tuned, after)):
            _require(weights, folder, selections, neuron_map)
        tied = {name: own for name, own in neuron_map.tied.items() if own in selections}
        _require_same_model(tuned, neuron_map, tied, after)
        checks = []
        for name in before:
            if name in after:
                checks.append(_compare(name, before[name], after[name], selections.get(name)))
                if progress is not None:
                    progress()
        for name, own in tied.items():
            if name in after and own in before:
                again = _compare(name, before[own], after[name], selections[own])
                if again.changed:
                    checks.append(again)
        only_in_one = sorted(set(before) ^ set(after))
    base_fingerprint = _total(check.base_digest for check in checks if check.name in selections)
    if mask.config.fingerprint not in (None, base_fingerprint):
        raise MaskError(
            f"field 'fingerprint': the mask was made on weights with {mask.config.fingerprint}, {base} has "
            f"{base_fingerprint} at the chosen neurons, so it is not what was frozen; give the checkpoint as it was "
            "before fine-tuning, or mask.with_config(fingerprint=None) if another one is meant"
        )

    return Verification(
        base=str(base),
        tuned=str(tuned),
        mask=mask.digest,
        frozen=sum(check.frozen for check in checks),
        changed=sum(check.changed for check in checks),
        trainable=sum(check.trainable for check in checks),
        trainable_changed=sum(check.trainable_changed for check in checks),
        base_fingerprint=base_fingerprint,
        tuned_fingerprint=_total(check.tuned_digest for check in checks),
        parameters=checks,
        only_in_one=only_in_one,
        rest=mask.config.rest,
    )


@dataclass
class _Whole:
    """A parameter that is all in one place."""

    name: str
    shape: tuple[int, ...]
    blocks: tuple[Block, ...]


def _require(weights: Parameters, folder: str | Path, names: Iterable[str], neuron_map: NeuronMap) -> None:
    for name in names:
        if name not in weights:
            raise ModelError(f"{folder} has no parameter {name}, which the mask freezes")
        if weights.shape(name) != neuron_map.shapes[name]:
            raise ModelError(
                f"{name} has shape {weights.shape(name)} in {folder}, expected {neuron_map.shapes[name]}, as the "
                "config of the base says"
            )


def _require_same_model(folder: str | Path, neuron_map: NeuronMap, tied: dict[str, str], weights: Parameters) -> None:
    """What is loaded from `folder` must be what is compared; its config, where it has one, says what is loaded."""
    if not (Path(folder) / "config.json").is_file():
        return
    config = read_config(folder)
    if getattr(config, "transformers_weights", None):
        raise ModelError(
            f"the config.json of {folder} has transformers load {config.transformers_weights}; expected weights under "
            'their usual names, without "transformers_weights"'
        )
    found = NeuronMap.of(config, neuron_map.granularity)
    if found.digest != neuron_map.digest:
        raise ModelError(
            f"the config.json of {folder} describes a {found.model_type} model of {found.total:,} neurons, that of the "
            f"base a {neuron_map.model_type} model of {neuron_map.total:,}, or has them elsewhere: what is loaded from "
            "there is not what is compared. Save it with the base's config"
        )
    for name in tied:
        if name not in weights and found.tied.get(name) != tied[name]:
            raise ModelError(
                f"{folder} has no {name}, which the base ties to {tied[name]} and the mask freezes, and its config "
                "does not tie it: a model loaded from there has random numbers there. Save it with the base's config"
            )


def _compare(name: str, old: torch.Tensor, new: torch.Tensor, selection: Selection | None) -> ParameterCheck:
    if old.shape != new.shape:
        raise ModelError(f"{name} has shape {tuple(old.shape)} in one checkpoint and {tuple(new.shape)} in the other")
    differs = _differs(old, new)
    frozen = changed = 0
    digests = ("", "")
    if selection is not None:
        for piece in _pieces(name, old, selection):
            found = piece.read(differs.reshape(-1))
            frozen, changed = frozen + found.numel(), changed + int(found.sum())
        digests = (_digest(name, old, selection), _digest(name, new, selection))
    return ParameterCheck(
        name=name,
        shape=tuple(old.shape),
        frozen=frozen,
        changed=changed,
        trainable=differs.numel() - frozen,
        trainable_changed=int(differs.sum()) - changed,
        base_digest=digests[0],
        tuned_digest=digests[1],
    )


def _differs(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    import torch

    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if old.dtype != new.dtype:
        wide = torch.float64 if torch.float64 in (old.dtype, new.dtype) else torch.float32
        old, new = old.to(wide), new.to(wide)
    return old.view(bits[old.element_size()]) != new.view(bits[new.element_size()])


def _pieces(name: str, tensor: torch.Tensor, selection: Selection) -> Iterator[Piece[_Whole]]:
    from neurofreeze.pieces import cut

    shape = tuple(tensor.shape)
    return cut([_Whole(name, shape, whole(shape))], {name: selection})


def _digest(name: str, tensor: torch.Tensor, selection: Selection) -> str:
    from neurofreeze import fingerprint

    return fingerprint.text(sum(piece.digest(tensor.reshape(-1)) for piece in _pieces(name, tensor, selection)))


def _total(digests: Any) -> str:
    from neurofreeze import fingerprint

    return fingerprint.text(sum(int(digest, 16) for digest in digests if digest))


def weights_fingerprint(folder: str | Path, mask: NeuronMask) -> str:
    """Fingerprint of the chosen elements in a checkpoint: what `Freezer.fingerprint` is on the loaded model."""
    config = read_config(folder)
    neuron_map = NeuronMap.of(config, mask.config.granularity)  # type: ignore[arg-type]
    selections = mask.select(neuron_map)
    with open_parameters(folder, config) as weights:
        _require(weights, folder, selections, neuron_map)
        return _total(_digest(name, weights[name], selection) for name, selection in selections.items())


def loaded_fingerprint(model: Any, mask: NeuronMask) -> str:
    """As `weights_fingerprint`, of a model that is loaded. Collective where its parameters are sharded."""
    from neurofreeze.strategies.weights import parameters, whole

    weights = parameters(model)
    selections = mask.select(NeuronMap.of(model, mask.config.granularity))  # type: ignore[arg-type]
    return _total(_digest(name, whole(weights[name]), selection) for name, selection in selections.items())
