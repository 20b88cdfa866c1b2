"""The expert that a model is compared or blended with: it has a cache of its own and runs only where it is asked."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F


class ExpertRun:
    """The expert in one call of generate.

    It reads what it has not read yet of the rows that it is asked for, so that a row that nobody asks for any more
    costs nothing, and asking twice at one step runs it once.

    Args:
        model: the expert, a causal language model with the same token ids.
        attention: int64 [batch, prompt length], 0 on the padding of the prompts.
        vocabulary: size of the guarded model's logits. Past the tokenizer's last token both hold padding of different
            sizes: what the expert has beyond it is left out, what it lacks has probability 0.
    """

    def __init__(self, model: Any, attention: torch.Tensor, vocabulary: int) -> None:
        self.model, self.attention, self.vocabulary = model, attention.to(model.device), vocabulary
        self.passes = 0
        self._rows: list[int] = []
        self._length = 0
        self._cache: Any = None
        self._logits: torch.Tensor | None = None
        accepted = inspect.signature(model.forward).parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._places = "position_ids" in accepted

    @torch.no_grad()
    def logits(self, ids: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """Float32 [rows, vocabulary] for the token after `ids`, int64 [batch, length], on its device."""
        if self._cache is None or not set(rows) <= set(self._rows):
            self._rows, self._length, self._cache = list(rows), 0, None
        if ids.shape[1] > self._length:
            if rows != self._rows:
                self._keep(rows)
            self._read(ids)
        assert self._logits is not None
        return self._logits[[self._rows.index(row) for row in rows]].to(ids.device)

    def _keep(self, rows: list[int]) -> None:
        places = torch.tensor([self._rows.index(row) for row in rows], device=self.model.device)
        if self._cache is not None:
            self._cache.batch_select_indices(places)
        self._rows = list(rows)

    def _read(self, ids: torch.Tensor) -> None:
        new = ids[self._rows, self._length :].to(self.model.device)
        prompt = self.attention[self._rows]
        mask = F.pad(prompt, (0, ids.shape[1] - prompt.shape[1]), value=1)
        options: dict[str, Any] = dict(self._options)
        if self._places:
            options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, self._length :]
        output = self.model(
            input_ids=new, attention_mask=mask, past_key_values=self._cache, use_cache=True, return_dict=True, **options
        )
        self.passes += 1
        self._cache, self._length = output.past_key_values, ids.shape[1]
        logits = output.logits[:, -1].float()[:, : self.vocabulary]
        self._logits = F.pad(logits, (0, self.vocabulary - logits.shape[1]), value=-torch.inf)
