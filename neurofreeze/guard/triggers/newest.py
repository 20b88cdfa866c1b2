"""Activations at the newest token: of an answer that is being written, and of prompts that a trigger is fitted on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from neurofreeze.activations import Flow, See, Side, tapped
from neurofreeze.data.batches import prompt_ids
from neurofreeze.data.examples import Example
from neurofreeze.errors import ArchitectureError, DataError
from neurofreeze.strategies.passes import evaluating


class Place(NamedTuple):
    """What flows into or out of a module; a layer's output may be a tuple, its first part is the hidden state."""

    module: str
    side: Side


@contextmanager
def newest(
    model: Any, places: Mapping[Place, torch.Tensor | None], batch: int, live: Callable[[], bool] = lambda: True
) -> Iterator[dict[Place, torch.Tensor]]:
    """Within the block, the dict holds what flowed past each place at the newest token: [batch, channels].

    Args:
        model: a transformers causal language model.
        places: the channels to keep, int64 [channels]; None for all.
        batch: number of rows; where a model lays its rows end to end, they are told apart by it.
        live: passes are not looked at while it is False.

    Raises:
        ArchitectureError: if a place is a stack of experts, which the newest token may not have reached.
    """
    found: dict[Place, torch.Tensor] = {}
    indices: dict[Place, torch.Tensor | None] = dict(places)

    def looking(place: Place) -> See:
        def see(flow: Flow) -> None:
            if not live():
                return
            if flow.routing is not None:
                raise ArchitectureError(f"{place.module} is a stack of experts; a gate can watch dense blocks only")
            values: Any = flow.values
            values = values[0] if isinstance(values, tuple) else values
            last = values.unflatten(0, (batch, -1))[:, -1] if values.dim() == 2 else values[:, -1]
            index = indices[place]
            if index is None:
                # A copy, or the whole prompt's activations would be kept.
                found[place] = last.clone()
            else:
                if index.device != last.device:
                    index = indices[place] = index.to(last.device)
                found[place] = last.index_select(-1, index)

        return see

    with tapped(model, {place: looking(place) for place in places}):
        yield found


class States(NamedTuple):
    """Activations at a place while greedy answers to prompts are begun.

    Attributes:
        values: float32 [tokens, channels], on the CPU.
        prompts: int64 [tokens], which prompt each is of.
    """

    values: torch.Tensor
    prompts: torch.Tensor


@torch.no_grad()
def while_answering(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    places: Sequence[Place],
    steps: int,
    batch_size: int = 8,
) -> dict[Place, States]:
    """What flows past each place at each prompt's last token and the first steps - 1 tokens of its answer.

    These are the tokens that a gate judges. The answers are thrown away.

    Raises:
        DataError: if there are no prompts.
    """
    if not examples:
        raise DataError("there are no prompts to fit a trigger on; expected harmful and benign ones")
    prompts = [prompt_ids(tokenizer, example) for example in examples]
    keeping = _Keeping(places, torch.tensor(_ends(model, tokenizer), dtype=torch.int64))
    with evaluating(model):
        for begin in range(0, len(prompts), batch_size):
            rows = prompts[begin : begin + batch_size]
            batch = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt").to(model.device)
            with newest(model, dict.fromkeys(places), len(rows)) as found:
                keeping.next(found, begin, batch["input_ids"].shape[1])
                model.generate(
                    **batch,
                    max_new_tokens=steps,
                    do_sample=False,
                    pad_token_id=tokenizer.pad_token_id,
                    logits_processor=[keeping],
                )
    owners = torch.cat(keeping.owners)
    return {place: States(torch.cat(values), owners) for place, values in keeping.values.items()}


class _Keeping:
    """A logits processor that keeps what is found at each step, of rows that have not ended."""

    def __init__(self, places: Sequence[Place], ends: torch.Tensor) -> None:
        self.ends = ends
        self.values: dict[Place, list[torch.Tensor]] = {place: [] for place in places}
        self.owners: list[torch.Tensor] = []

    def next(self, found: dict[Place, torch.Tensor], first: int, length: int) -> None:
        """The next batch: where its activations will be, the number of its first prompt, the length of its prompts."""
        self.found, self.first, self.length = found, first, length

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        going = (~torch.isin(ids[:, self.length :].cpu(), self.ends).any(1)).nonzero()[:, 0]
        self.owners.append(going + self.first)
        for place, values in self.values.items():
            values.append(self.found[place].float().cpu()[going])
        return scores


def _ends(model: Any, tokenizer: Any) -> list[int]:
    found = model.generation_config.eos_token_id
    found = tokenizer.eos_token_id if found is None else found
    return [] if found is None else found if isinstance(found, list) else [found]


def decoder_layers(model: Any) -> list[str]:
    """Names of the model's decoder layers, in order.

    Raises:
        ArchitectureError: if there is no list of as many layers as the config states.
    """
    from neurofreeze.neurons import canonical_name

    expected = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == expected:
            return [f"{canonical_name(name)}.{number}" for number in range(expected)]
    raise ArchitectureError(f"{type(model).__name__} has no list of {expected} layers; a probe cannot be placed")
