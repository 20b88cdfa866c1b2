"""Let a safety-tuned expert have its say in the next token (NGSD, arXiv 2602.02027).

On a spike the next token is drawn from p_base + alpha (p_expert - p_base), over the union of both top 64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from neurofreeze.errors import GuardError
from neurofreeze.guard.reactions import severity
from neurofreeze.guard.reactions.base import Call, Decision
from neurofreeze.guard.triggers.base import Step
from neurofreeze.guard.triggers.fields import is_number

TOP = 64


@dataclass(frozen=True)
class Blend:
    """Blend the model's next-token distribution with the expert's.

    Attributes:
        alpha: weight of the expert in [0, 1]; None for self-reflection, once a row.
        lasting: how many tokens a firing of the trigger blends, its own step's first; None for all that follow.
            NGSD: 1.
    """

    alpha: float | None = None
    lasting: int | None = 1
    name: ClassVar[str] = "blend"
    withdraws: ClassVar[bool] = False
    needs_expert: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.alpha is not None and not (is_number(self.alpha) and 0 <= self.alpha <= 1):
            raise GuardError(f"alpha is {self.alpha!r}; expected a number in [0, 1], or None for self-reflection")
        if self.lasting is not None and (type(self.lasting) is not int or self.lasting < 1):
            raise GuardError(f"lasting is {self.lasting!r}; expected a positive number of tokens or None")

    def respond(self, call: Call) -> Blending:
        """The reaction in one call of generate."""
        return Blending(self, call)


class Blending:
    """One call of generate."""

    def __init__(self, reaction: Blend, call: Call) -> None:
        self.reaction, self.call = reaction, call
        self.alphas: dict[int, tuple[float, dict[str, Any]]] = {}
        self.until: dict[int, float] = {}
        self.next = 0  # number of the step after the one at hand

    def react(self, row: int, step: Step) -> Decision:
        """Blend the row from this step on."""
        alpha, found = self._alpha(row)
        lasting = self.reaction.lasting
        self.until[row] = float("inf") if lasting is None else step.number + lasting
        return Decision("blended", settled=lasting is None, details={"alpha": alpha, **found})

    def adjust(self, step: Step, scores: torch.Tensor) -> torch.Tensor:
        """Scores with the rows blended that are to be at this step."""
        self.next = step.number + 1
        rows = [row for row in step.rows if step.number < self.until.get(row, -1)]
        if not rows:
            return scores
        alpha = torch.tensor([self.alphas[row][0] for row in rows], device=scores.device)[:, None]
        logits = step.logits[rows]
        blended = blend(logits, step.expert(rows), alpha)
        # What the other logits processors did to the model's own scores, they do to the blend's.
        changed = scores[rows] - logits
        scores = scores.clone()
        scores[rows] = torch.where(blended == -torch.inf, blended, blended + changed.nan_to_num(0.0, 0.0, -torch.inf))
        return scores

    def lasts(self, row: int) -> bool:
        """Whether the row is blended at the next step too, be it past the last that is judged."""
        return self.next < self.until.get(row, -1)

    def _alpha(self, row: int) -> tuple[float, dict[str, Any]]:
        if self.reaction.alpha is not None:
            self.alphas[row] = self.reaction.alpha, {}
        elif row not in self.alphas:
            scores = severity.reflect(self.call, self.call.prompts[row])
            known = {"template": severity.VERSION, "scores": None if scores is None else scores._asdict()}
            self.alphas[row] = (severity.CAUTIOUS if scores is None else scores.alpha), known
        return self.alphas[row]


def blend(base: torch.Tensor, expert: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Logarithm of the blend, -inf outside the union of the top 64; not normalised over it.

    Args:
        base: float [rows, vocabulary], logits.
        expert: the same of the expert.
        alpha: float [rows, 1].
    """
    top = min(TOP, base.shape[-1])
    union = torch.zeros_like(base, dtype=torch.bool)
    for logits in (base, expert):
        union.scatter_(-1, logits.topk(top).indices, True)
    p_base, p_expert = base.softmax(-1), expert.softmax(-1)
    return (p_base + alpha * (p_expert - p_base)).clamp(min=0).log().masked_fill(~union, -torch.inf)
