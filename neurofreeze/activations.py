"""Watching, and replacing, what flows into and out of a model's matrices: of modules, and of stacks of experts alike.

A stack of experts is a parameter, not a module, and its activations are no module's input. transformers lets a model's
experts be computed by any implementation registered under a name: while a stack is watched, its experts run by the one
of this file, which computes what transformers' "grouped_mm" does, expert by expert, and stops wherever something
watches. Results agree with the model's own implementation to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F

from neurofreeze.errors import ArchitectureError
from neurofreeze.neurons import canonical_name

Side = Literal["input", "output"]

_IMPLEMENTATION = "neurofreeze"


class Routing(NamedTuple):
    """Which tokens reached which experts of a layer.

    Attributes:
        tokens: int64 [routed], each token's place in the batch with its rows laid end to end; expert by expert, in
            ascending order within each. A token is there once for every expert that it reached.
        counts: how many tokens reached each expert, 0 where none did.
    """

    tokens: torch.Tensor
    counts: tuple[int, ...]


class Flow(NamedTuple):
    """What flows past a place in a model at once.

    Attributes:
        values: float [rows, length, channels], rows flattened in OPT; of experts [routed, channels], before the routing
            weights, which transformers applies to what the second matrix gives.
        routing: of experts, whose these values are; None where every token passes.
    """

    values: torch.Tensor
    routing: Routing | None = None


See: TypeAlias = Callable[[Flow], torch.Tensor | None]
_Tap: TypeAlias = tuple[str, Side, See]

_taps: dict[torch.nn.Module, list[_Tap]] = {}


@contextmanager
def tapped(model: Any, taps: Mapping[tuple[str, Side], See]) -> Iterator[None]:
    """Within the block, call each `see` with what flows past its place; what it returns, if anything, flows on instead.

    Args:
        model: a transformers causal language model, wrapped or not, spread over devices or not.
        taps: by name and side of a module, or of the parameter that is a stack of experts
            ("model.layers.3.mlp.experts.down_proj"). Blocks may be nested: the outer one sees, and replaces, first.

    Raises:
        ArchitectureError: if there is no such module or stack, or its experts cannot be watched.
    """
    modules = {canonical_name(name): module for name, module in model.named_modules()}
    with ExitStack() as stack:
        for (name, side), see in taps.items():
            if name in modules:
                stack.callback(_hooked(modules[name], side, see).remove)
            else:
                parent, _, leaf = name.rpartition(".")
                stack.enter_context(_tapped_experts(name, modules.get(parent), (leaf, side, see)))
        yield


def _hooked(module: torch.nn.Module, side: Side, see: See) -> Any:
    def before(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        found = see(Flow(inputs[0]))
        return None if found is None else (found, *inputs[1:])

    if side == "input":
        return module.register_forward_pre_hook(before)
    return module.register_forward_hook(lambda _, inputs, output: see(Flow(output)))


@contextmanager
def _tapped_experts(name: str, experts: Any, tap: _Tap) -> Iterator[None]:
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    if not hasattr(experts, "is_transposed") or tap[0] not in dict(experts.named_parameters(recurse=False)):
        raise ArchitectureError(
            f"{name} is neither a module nor a stack of experts that transformers can compute by implementations "
            f"registered by name (found {type(experts).__name__}); what flows through it cannot be watched. Masks, "
            "freezing, and strategies without activations such as 'snip' do not need to"
        )
    if getattr(experts, "_is_expert_parallel", False):
        raise ArchitectureError(f"{name} holds only this rank's experts (expert parallelism); watch the whole model")
    config = experts.config
    outermost = experts not in _taps
    if outermost:
        ALL_EXPERTS_FUNCTIONS.register(_IMPLEMENTATION, _experts_forward)
        # A copy, since all modules share one config, and those that nothing watches stay with what they have.
        experts.config = copy(config)
        experts.config._experts_implementation = _IMPLEMENTATION
    _taps.setdefault(experts, []).append(tap)
    try:
        yield
    finally:
        _taps[experts].pop()
        if outermost:
            del _taps[experts]
            experts.config = config


def _experts_forward(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """What the experts give: float [tokens, hidden], from the same and the experts of each token [tokens, top k]."""
    routed, order = top_k_index.flatten().sort(stable=True)
    counts = tuple(torch.bincount(routed, minlength=self.num_experts).tolist())
    routing = Routing(order // top_k_index.shape[-1], counts)
    values = _linear(self, "gate_up_proj" if self.has_gate else "up_proj", hidden_states[routing.tokens], routing)
    values = self._apply_gate(values) if self.has_gate else self.act_fn(values)
    values = _linear(self, "down_proj", values, routing)
    if self.has_post_expert_norm:
        values = self.post_expert_norm(values)
    weighted = values * top_k_weights.flatten()[order, None]
    by_token = torch.empty_like(weighted).index_copy(0, order, weighted)
    return by_token.view(*top_k_index.shape, -1).sum(1).to(hidden_states.dtype)


def _linear(experts: Any, name: str, values: torch.Tensor, routing: Routing) -> torch.Tensor:
    values = _seen(experts, name, "input", Flow(values, routing))
    stack, bias = getattr(experts, name), getattr(experts, f"{name}_bias", None)
    matrices = stack.mT if experts.is_transposed else stack
    parts = zip(values.split(routing.counts), matrices, bias if bias is not None else [None] * len(stack), strict=True)
    return _seen(experts, name, "output", Flow(torch.cat([F.linear(*part) for part in parts]), routing))


def _seen(experts: torch.nn.Module, name: str, side: Side, flow: Flow) -> torch.Tensor:
    for tap_name, tap_side, see in _taps[experts]:
        if (tap_name, tap_side) == (name, side):
            found = see(flow)
            flow = flow if found is None else flow._replace(values=found)
    return flow.values
