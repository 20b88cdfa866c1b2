"""Freezer: the guarantee.

After any number of optimizer steps every frozen element is bit-identical to before, the clip norm counts only
trainable elements, and the moments of frozen elements are exactly zero; or training stops with an error on every rank.

Four things make it so, in the order of a training step: gradients of frozen elements are zeroed as they are
accumulated (so the norm is right and moments stay zero); before the optimizer steps, the frozen elements are copied,
unless a low-precision copy of the model holds them anyway; after it they are put back (weight decay moves a weight
whose gradient is zero); and now and then a fingerprint of all frozen bits is compared with the one taken at the start.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakSet

import torch
from rich.console import Console

from neurofreeze.adapters import Adapters
from neurofreeze.digests import Digests, local_digests, whole_fingerprint
from neurofreeze.distributed import all_or_none, rank, require_equal
from neurofreeze.engines import Engine, Shard, recognise, require_verified_optimizers
from neurofreeze.engines.base import Gradient
from neurofreeze.engines.partial import PartialEngine
from neurofreeze.errors import FreezeError, MaskError, NeuroFreezeWarning
from neurofreeze.hooks import before_others
from neurofreeze.lora import find_adapters
from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap, Selection, canonical_name
from neurofreeze.pieces import Piece, cut
from neurofreeze.record import FreezeRecord
from neurofreeze.rest import KINDS, require_tied
from neurofreeze.selective_layers import has_selective_layers
from neurofreeze.steps import Steps, restore_master
from neurofreeze.summary import FreezeSummary

# Those that freeze now: one may be left over from a training that was broken off.
_attached: WeakSet[Freezer] = WeakSet()


def freeze(model: Any, optimizer: Any = None, mask: NeuronMask | None = None) -> Freezer:
    """Freeze the neurons that `mask` chooses, in this model, under this optimizer, from now on.

    Call it after the model is prepared for training (moved, wrapped, its checkpoint loaded) and before the first
    step. Works for one process, DDP, FSDP1, FSDP2 and DeepSpeed ZeRO, with any torch optimizer, gradient accumulation,
    clipping, mixed precision, gradient checkpointing and torch.compile. In a distributed job every rank must call it.
    Where PEFT trains LoRA adapters instead of weights, what of them would change frozen neurons is held at zero; where
    `selective` has made layers selective, what they keep frozen is checked.

    Args:
        model: the module as prepared for training, or a DeepSpeed engine.
        optimizer: the optimizer that steps it; a DeepSpeed engine has its own.
        mask: the neurons to freeze, and what else (`NeuronMask.with_rest`); see also `freeze_rest`.

    Raises:
        MaskError: if the mask is for another model or other weights, or chooses no neuron.
        ConfigError: if tied parameters are to be frozen and to train.
        FreezeError: if freezing cannot be guaranteed: a parameter is missing or in no optimizer, or the engine is
            not supported. Raised on every rank.
    """
    with all_or_none("freeze"):
        given = _given(mask)
        engine = recognise(model, optimizer)
        neuron_map = NeuronMap.of(model, given.config.granularity)  # type: ignore[arg-type]
        given.check(neuron_map)
        if given.count == 0:
            raise MaskError("the mask chooses no neuron, so nothing would be frozen; train without freezing instead")
        if given.count == given.total:
            if given.config.rest == KINDS:
                raise MaskError("the mask freezes everything, so nothing would train; let some neurons or kinds train")
            warnings.warn(
                f"the mask freezes all {given.total:,} neurons; only embeddings, norms and lm_head can train",
                NeuroFreezeWarning,
                stacklevel=2,
            )
        selections = given.select(neuron_map)
        selective = has_selective_layers(model, selections)
        adapters = find_adapters(model, selections, neuron_map.shapes)
        require_tied(model, neuron_map, selections)
        if adapters or selective or _any_without_gradient(model, neuron_map.held(given.config.rest)):
            engine = PartialEngine(engine, model)
            selections = adapters.add_to(selections)
        shards = engine.shards(selections)
        _require_shapes(shards, {**neuron_map.shapes, **adapters.shapes})
        require_verified_optimizers(engine, shards)
        _require_others_intact(shards)
        weights = list(cut(shards, selections))
        gradients = list(cut(engine.gradients(selections), selections))
        gradients_at_step = list(cut(engine.gradients_at_step(selections), selections))
    require_equal("the mask", given.digest)
    adapters.clear(weights, engine)
    return Freezer(model, engine, neuron_map, given, selections, weights, gradients, gradients_at_step, adapters)


class Freezer:
    """Keeps chosen elements of a model frozen until `detach()`. Made by `freeze()`.

    Attributes:
        engine: where weights, gradients and moments are.
        mask: the neurons that are frozen.
        adapters: what of LoRA adapters is held at zero; the fingerprint is of the base alone.
        steps: what puts frozen elements back after each step.
        fingerprint: of the frozen bits, 16 hexadecimal digits.
        check_seconds: what the last check of them took on this rank.
    """

    def __init__(
        self,
        model: Any,
        engine: Engine,
        neuron_map: NeuronMap,
        mask: NeuronMask,
        selections: dict[str, Selection],
        weights: list[Piece[Shard]],
        gradients: list[Piece[Gradient]],
        gradients_at_step: list[Piece[Gradient]],
        adapters: Adapters,
    ) -> None:
        self.engine = engine
        self.mask = mask
        self.adapters = adapters
        self._model = model
        self._names = _names(model)
        self._map = neuron_map
        self._selections = selections
        self._weights = weights
        self._gradients = gradients
        self._gradients_at_step = gradients_at_step
        self.steps = Steps(weights)
        self._unmasked = self._parameters()
        self._without_gradient = {
            piece.of.name: piece.of.parameter for piece in weights if id(piece.of.parameter) not in self._unmasked
        }
        self._resumed = False
        self.check_seconds = 0.0
        self.sync()
        self.fingerprint, self._digests = self._digest()
        self._require_weights_of_the_mask()
        self._handles = [*self._hook_gradients(), *self._hook_steps()]
        _attached.add(self)

    def check(self) -> str:
        """Recompute the fingerprint of all frozen elements; returns it. Collective.

        Raises:
            FreezeError: on every rank, if any frozen element changed, a frozen moment is not zero, or the model no
                longer holds the parameters that were frozen, or has some that it had not.
        """
        if self._resumed:
            self.sync()
            self._resumed = False
        with all_or_none("the check of frozen elements"):
            self._refuse_new_parameters()
            self._require_same_parameters()
            self.adapters.require_intact(self._weights)
            for piece in self._weights:
                for moment in piece.of.moments():
                    piece.require_zero(moment, "optimizer state")
        found, local = self._digest()
        if found != self.fingerprint:
            raise FreezeError(
                f"frozen elements changed: their fingerprint is {found}, it was {self.fingerprint} when freezing "
                "began; something wrote to the weights outside optimizer.step(), or loaded others"
            )
        self._digests = local  # of a checkpoint that was loaded since
        return found

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must carry for freezing to go on: one entry, a JSON text with the mask and fingerprint."""
        return FreezeRecord(self.mask, self.fingerprint).state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint whose state holds what `state_dict()` returned. Collective.

        The weights are compared with the checkpoint's fingerprint before the next step, or at the next `check()`, so
        that model and optimizer may be loaded before or after this.

        Raises:
            FreezeError: on every rank, if the checkpoint carries no mask, or another one.
        """
        with all_or_none("resuming"):
            record = FreezeRecord.of(state)
            if record.mask != self.mask:
                raise FreezeError(
                    f"the checkpoint was trained with {record.mask!r} frozen (digest {record.mask.digest[:12]}), now "
                    f"{self.mask!r} is ({self.mask.digest[:12]}); resume with the checkpoint's mask, "
                    "NeuronMask.from_state_dict, or start a new run from its exported weights"
                )
        require_equal("the checkpoint's fingerprint", record.fingerprint)
        self.fingerprint = record.fingerprint
        self._resumed = True

    def summary(self) -> FreezeSummary:
        """Print what is frozen and what trains, site by site (on rank 0), and return it."""
        found = FreezeSummary.of(self._map, self.mask, self.adapters)
        if rank() == 0:
            Console().print(found)
        return found

    def mask_gradients(self) -> None:
        """Zero the gradients of frozen elements now. Needed only by code that assigns `p.grad` itself."""
        for piece in self._gradients_at_step or self._gradients:
            piece.zero(piece.of.gradient())
        self._unmasked.clear()

    def sync(self) -> None:
        """Make masters agree with the model's low-precision copy and moments zero. Collective.

        Needed after a checkpoint is loaded by other means than `load_state_dict`.

        Raises:
            FreezeError: on every rank, if the engine's masters are not where they are expected.
        """
        with all_or_none("freeze"):
            self.steps.forget()
            for piece in self._weights:
                _require_same_values(piece)
                restore_master(piece)
                for moment in piece.of.moments():
                    piece.zero(moment)

    def detach(self) -> None:
        """Check once more and stop freezing. Collective."""
        self.check()
        self.release()

    def release(self) -> None:
        """Stop freezing without a check, as where training was given up. Undoes what half a step did."""
        if not self._handles:
            return
        self.steps.undo()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        _attached.discard(self)

    def require_intact(self, parameters: Collection[torch.Tensor]) -> None:
        """Raise FreezeError if frozen elements changed on this rank, but for what half a step did.

        Args:
            parameters: where other elements are to be frozen; if none of them is this one's, nothing is done.
        """
        held = {id(parameter) for parameter in parameters}
        if self._resumed or not any(id(piece.of.parameter) in held for piece in self._weights):
            return
        self.steps.undo()
        if local_digests(self._base()) != self._digests:
            raise FreezeError(
                "frozen elements of this model changed while another freezer held them, whose training was broken off; "
                "load the model anew, or call that freezer's release() first if they are meant to be other ones now"
            )

    def _hook_gradients(self) -> Iterator[Any]:
        by_parameter: dict[int, list[Piece[Gradient]]] = {}
        for piece in self._gradients:
            by_parameter.setdefault(id(piece.of.parameter), []).append(piece)
        for key, pieces in by_parameter.items():
            yield before_others(pieces[0].of.parameter, self._gradient_hook(key, pieces))

    def _gradient_hook(self, key: int, pieces: list[Piece[Gradient]]) -> Any:
        def hook(_: torch.Tensor) -> None:
            for piece in pieces:
                piece.zero(piece.of.gradient())
            self._unmasked.discard(key)

        return hook

    def _hook_steps(self) -> Iterator[Any]:
        for optimizer in self.engine.optimizers():
            yield optimizer.register_step_pre_hook(self._before_step)
            yield optimizer.register_step_post_hook(self._after_step)

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # torch's checkpoints make room for moments by a step of rate 0, taken before the weights are loaded.
        if self._resumed and any(group.get("lr", 1) for group in optimizer.param_groups):
            self.check()
        for name, parameter in self._without_gradient.items():
            if parameter.grad is not None:
                raise FreezeError(
                    f"{name} had requires_grad off when freezing began, and has a gradient now; leave it off, or "
                    "switch it on before freezing"
                )
        for gradient in self._gradients_at_step:
            if id(gradient.of.parameter) in self._unmasked:
                gradient.require_zero(gradient.of.gradient(), "gradient")
        self.steps.begin(optimizer)

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.steps.end(optimizer)
        self._unmasked = self._parameters()

    def _parameters(self) -> set[int]:
        return {id(piece.of.parameter) for piece in self._gradients}

    def _digest(self) -> tuple[str, Digests]:
        started = time.perf_counter()
        local = local_digests(self._base())
        found = whole_fingerprint(local)
        self.check_seconds = time.perf_counter() - started
        return found, local

    def _base(self) -> list[Piece[Shard]]:
        return [piece for piece in self._weights if piece.of.name not in self.adapters.parts]

    def _require_weights_of_the_mask(self) -> None:
        if self.adapters.quantized:
            warnings.warn(
                f"the base is quantized, so {len(self.adapters.quantized)} of its weights cannot be compared with "
                "those the mask was made on",
                NeuroFreezeWarning,
                stacklevel=4,
            )
            return
        self.mask.check_weights(self.fingerprint)

    def _require_same_parameters(self) -> None:
        held = {shard.name: shard for shard in self.engine.shards(self._selections)}
        for piece in self._weights:
            found = held[piece.of.name]
            if found.parameter is not piece.of.parameter or found.shape != piece.of.shape:
                raise FreezeError(
                    f"{piece.of.name} was replaced by another parameter after freezing began, of shape {found.shape}, "
                    f"it had {piece.of.shape}; freeze again, after whatever rebuilds the model"
                )

    def _refuse_new_parameters(self) -> None:
        for name in _names(self._model) - self._names:
            raise FreezeError(
                f"{name} came into the model after freezing began, so that nothing of it is held: an adapter that PEFT "
                "put in, or a layer that was changed; add it before freezing"
            )


def _given(mask: NeuronMask | None) -> NeuronMask:
    if mask is None:
        raise MaskError("freeze() was given no mask; pass mask=NeuronMask...")
    return mask


def _names(model: Any) -> Counter[str]:
    # Counted, since adapters within one another differ only by the wrapping.
    return Counter(canonical_name(name) for name, _ in model.named_parameters())


def _any_without_gradient(model: Any, names: Collection[str]) -> bool:
    return any(canonical_name(name) in names and not p.requires_grad for name, p in model.named_parameters())


def _require_others_intact(shards: Sequence[Shard]) -> None:
    # A training that was broken off leaves its freezer behind. What that froze is not to be taken as it is now: the
    # training may have ended half way through a step, or because frozen elements changed.
    for freezer in list(_attached):
        freezer.require_intact([shard.parameter for shard in shards])


def _require_shapes(shards: Sequence[Shard], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for shard in shards:
        if shard.shape != shapes[shard.name]:
            raise FreezeError(
                f"{shard.name} has shape {shard.shape}, its config says {shapes[shard.name]}; the model was changed "
                "after it was built"
            )


def _require_same_values(piece: Piece[Shard]) -> None:
    # A wrong idea of where masters are must not go unnoticed. DeepSpeed's bf16 stage 0 takes a step with weight decay
    # while it is being built, so its masters may be a little off; anything else is far off.
    low, master = piece.of.low_precision(), piece.of.master()
    if low is None:
        return
    expected, found = low.to(master.device, torch.float32), master.to(torch.float32)
    if not torch.allclose(found, expected, rtol=0.02, atol=1e-6):
        raise FreezeError(
            f"{piece.of.name}: the optimizer's master does not hold the model's weights where they are expected; "
            "this version of the engine cannot be frozen"
        )
