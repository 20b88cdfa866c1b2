"""Which rows of a batch are finished, as generate sees it, and stopping those whose answer is replaced."""

from __future__ import annotations

from typing import Any

import torch
from transformers.generation.stopping_criteria import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

_TRANSFORMERS_OWN = (EosTokenCriteria, MaxLengthCriteria, MaxTimeCriteria, StopStringCriteria)


class Finishing(StoppingCriteria):
    """Goes into generate in place of the caller's criteria, which it asks, and notes what ends each row.

    Args:
        given: the caller's criteria.
        config: what generate runs with.
        tokenizer: as given to generate, for stop strings.
        batch: number of rows.

    Attributes:
        finished: bool [batch]; rows that have ended.
        lengths: of each finished row, how long its sequence is, padding on the left included.
        withdrawn: rows whose answer is replaced; they end with the next token.
    """

    def __init__(self, given: Any, config: Any, tokenizer: Any, batch: int) -> None:
        given = list(given or ())
        # Those of transformers' own kinds take the place of what generate makes itself, so they must be in its list.
        self.left = [criterion for criterion in given if isinstance(criterion, _TRANSFORMERS_OWN)]
        self.given = StoppingCriteriaList([criterion for criterion in given if criterion not in self.left])
        ends = [criterion for criterion in self.left if isinstance(criterion, (EosTokenCriteria, StopStringCriteria))]
        if config.eos_token_id is not None:
            ends.append(EosTokenCriteria(config.eos_token_id))
        if config.stop_strings is not None and tokenizer is not None:
            ends.append(StopStringCriteria(tokenizer, config.stop_strings))
        self.ends = StoppingCriteriaList(ends)
        self.finished = [False] * batch
        self.lengths: dict[int, int] = {}
        self.withdrawn: set[int] = set()

    def criteria(self) -> StoppingCriteriaList:
        """What to give to generate."""
        return StoppingCriteriaList([*self.left, self])

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Bool [batch]: rows that the caller's criteria end, or whose answer is replaced."""
        none = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        stopped = none | (self.given(input_ids, scores, **kwargs) if self.given else none)
        ended = stopped | (self.ends(input_ids, scores) if self.ends else none)
        for row, over in enumerate(ended.tolist()):
            if over and not self.finished[row]:
                self.finished[row] = True
                self.lengths[row] = input_ids.shape[1]
        if self.withdrawn:
            stopped[sorted(self.withdrawn)] = True
        return stopped
