"""Other answers in place of what was generated, in all that generate returns, and a stream that waits for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from transformers.generation.streamers import BaseStreamer


def replaced(result: Any, answers: Mapping[int, list[int]], lengths: Mapping[int, int], prompt: int, pad: int) -> Any:
    """What generate returned, with other answers in some rows.

    Scores and logits of a replaced row are 0 for its token and -inf for all others; the cache is left out, since it is
    of what was withdrawn.

    Args:
        result: int64 [batch, length], or the dict with `sequences` and what else was asked for.
        answers: row -> token ids of the answer.
        lengths: length of each other row that is finished; the rest are as long as the sequences.
        prompt: length of the prompts.
        pad: the padding token.
    """
    if not answers:
        return result
    old = result if isinstance(result, torch.Tensor) else result.sequences
    kept = [lengths.get(row, old.shape[1]) for row in range(len(old)) if row not in answers]
    length = max([*kept, *(prompt + len(ids) for ids in answers.values())])
    sequences = F.pad(old, (0, max(0, length - old.shape[1])), value=pad)[:, :length].clone()
    for row, ids in answers.items():
        sequences[row, prompt:] = pad
        sequences[row, prompt : prompt + len(ids)] = torch.tensor(ids, device=old.device)
    if isinstance(result, torch.Tensor):
        return sequences
    result.sequences = sequences
    for name in ("scores", "logits"):
        if result.get(name) is not None:
            result[name] = _one_hot(result[name], sequences[:, prompt:], sorted(answers))
    result.past_key_values = None
    return result


def _one_hot(steps: tuple[torch.Tensor, ...], tokens: torch.Tensor, rows: list[int]) -> tuple[torch.Tensor, ...]:
    """Scores [batch, vocabulary] of each step, certain of `tokens` in `rows`, and in all rows of steps that are new."""
    found = []
    for number, chosen in enumerate(tokens.T):
        certain = torch.full_like(steps[0], -torch.inf).scatter_(1, chosen[:, None], 0.0)
        if number < len(steps):
            step = steps[number].clone()
            step[rows] = certain[rows]
            certain = step
        found.append(certain)
    return tuple(found)


class HeldStreamer(BaseStreamer):
    """Holds tokens back until nothing can be replaced any more; then it hands them on, and what follows at once.

    Args:
        streamer: who is to see only what the guard has let through.
    """

    def __init__(self, streamer: Any) -> None:
        self.streamer = streamer
        self.held: list[torch.Tensor] = []
        self.prompted = self.open = False

    def put(self, value: torch.Tensor) -> None:
        """The prompt first, then one token a row."""
        if self.open or not self.prompted:
            self.prompted = True
            self.streamer.put(value)
        else:
            self.held.append(value)

    def release(self) -> None:
        """Nothing can be replaced any more."""
        self.open = True
        for value in self.held:
            self.streamer.put(value)
        self.held = []

    def end(self) -> None:
        """Generate has ended; `finish` is what the streamer hears of it."""

    def finish(self, sequences: torch.Tensor, prompt: int) -> None:
        """Stream what was held back as it has become, and end."""
        if not self.open:
            for tokens in sequences[:, prompt:].T.cpu():
                self.streamer.put(tokens)
        self.streamer.end()
