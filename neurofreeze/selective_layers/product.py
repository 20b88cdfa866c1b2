"""A matrix product of which only some rows or columns of the weight train.

Forward is the ordinary product: the lines that train are written into the weight first. Backward forms the gradient of
those lines only, and where they are columns only their inputs are kept for it. The weight itself has no gradient, so
it has no optimizer state either.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from neurofreeze.selective_layers.lines import Lines
from neurofreeze.selective_layers.sharded import require_whole


def linear(module: Any, x: torch.Tensor, transposed: bool) -> torch.Tensor:
    """What a linear layer computes for `x` [..., in], with its trained lines.

    Args:
        module: a selective module with a weight and maybe a bias.
        x: its input.
        transposed: whether the weight is [in, out], as in transformers' Conv1D.
    """
    # Not as attributes, which read as the merged parameters.
    lines, own = module.selective_lines, module._parameters
    weight, bias = own["weight"], own["bias"]
    require_whole(weight)
    if "bias" in lines:
        bias = lines["bias"].put(bias, own["bias_trained"])
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(x.device.type))
        bias = None if bias is None else bias.to(x.dtype)
    if "weight" not in lines:
        return F.linear(x, weight.T if transposed else weight, bias)
    return _Product.apply(x, weight, own["weight_trained"], bias, lines["weight"], transposed)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        trained: torch.Tensor,
        bias: torch.Tensor | None,
        lines: Lines,
        transposed: bool,
    ) -> torch.Tensor:
        ctx.lines, ctx.transposed = lines, transposed
        ctx.by_output = lines.selection.axis == int(transposed)
        kept = x if ctx.by_output else x.index_select(-1, *lines.places(x.device))
        ctx.save_for_backward(kept, weight, trained)
        return F.linear(x, _matrix(weight, trained, lines, transposed, x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        kept, weight, trained = ctx.saved_tensors
        needs_x, _, needs_lines, needs_bias = ctx.needs_input_grad[:4]
        grad_x = grad_lines = grad_bias = None
        if needs_x:
            # Engines that shard gather the weight anew for the backward pass, as it was.
            written = not dist.is_initialized()
            grad_x = grad @ _matrix(weight, trained, ctx.lines, ctx.transposed, grad.dtype, written)
        flat, kept = grad.flatten(0, -2), kept.flatten(0, -2)
        if needs_lines:
            chosen = flat.index_select(-1, *ctx.lines.places(grad.device)).T @ kept if ctx.by_output else kept.T @ flat
            grad_lines = chosen.to(trained.dtype)
        if needs_bias:
            grad_bias = flat.sum(0)
        return grad_x, None, grad_lines, grad_bias, None, None


def _matrix(
    weight: torch.Tensor,
    trained: torch.Tensor,
    lines: Lines,
    transposed: bool,
    dtype: torch.dtype,
    written: bool = False,
) -> torch.Tensor:
    """The whole matrix, [out, in], with the trained lines in it; `written` if they are in the weight already."""
    if torch.compiler.is_compiling():
        whole = lines.put(weight, trained)  # a compiler cannot follow writes that autograd does not see
    else:
        if not written:
            lines.put_(weight, trained)
        whole = weight.detach()
    return (whole.T if transposed else whole).to(dtype)
