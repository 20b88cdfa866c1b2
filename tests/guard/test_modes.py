"""What a guard cannot stand in is refused before anything is generated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

import neurofreeze as nf
from neurofreeze.errors import GuardError
from neurofreeze.guard.reactions import Flag, Refuse
from tests.guard.scripted import PROMPTS, Scripted, Tape, batch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "beam search cannot be guarded"),
        ({"num_beams": 2, "do_sample": True}, "beam sample cannot be guarded"),
        ({"generation_config": GenerationConfig(num_beams=3)}, "beam search cannot be guarded"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive search cannot be guarded"),
        ({"guidance_scale": 1.5}, "on another prompt, and a gate would see that one"),
        ({"prompt_lookup_num_tokens": 3}, "assisted generation cannot be guarded"),
        ({"assistant_model": object()}, "assistant_model=.*several tokens at a time"),
        ({"custom_generate": "someone/loop"}, "custom_generate=.*loop of your own"),
        ({"inputs_embeds": torch.zeros(1, 3, 36)}, "inputs_embeds=.*token ids"),
        ({"past_key_values": object()}, "past_key_values=.*in a cache"),
        ({"synced_gpus": True}, "synced_gpus=.*wait for each other"),
        ({"cache_implementation": "static"}, "compiled or paged"),
        ({"output_hidden_states": True}, "none of the new one"),
        ({"attention_mask": None}, "expected attention_mask="),
        ({"attention_mask": torch.tensor([[1, 0]] * 3), "input_ids": torch.ones(3, 2).long()}, "padded on the right"),
        ({"input_ids": None}, "expected the prompts' token ids"),
    ],
)
def test_a_mode_that_cannot_be_guarded(
    gated: Any, tiny_tokenizer: Any, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(gated), "forward", lambda *_, **__: pytest.fail("the model ran"))
    gate = nf.Gate(gated, tiny_tokenizer, Scripted(), Refuse())
    with pytest.raises(GuardError, match=message):
        gate.generate(**{**batch(tiny_tokenizer), **options})


def test_the_models_own_settings_count(gated: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gated.generation_config, "num_beams", 2)
    with pytest.raises(GuardError, match="beam search"):
        nf.Gate(gated, tiny_tokenizer, Scripted(), Refuse()).generate(**batch(tiny_tokenizer))


def test_a_stream_cannot_wait_for_a_gate_without_a_last_step(gated: Any, tiny_tokenizer: Any) -> None:
    inputs = batch(tiny_tokenizer, PROMPTS[:1])
    with pytest.raises(GuardError, match="what is streamed cannot be taken back"):
        nf.Gate(gated, tiny_tokenizer, Scripted(), Refuse(), steps=None).generate(**inputs, streamer=Tape())
    tape = Tape()
    nf.Gate(gated, tiny_tokenizer, Scripted(), Flag(), steps=None).generate(**inputs, streamer=tape)
    assert tape.ended


def test_hidden_states_are_given_where_nothing_is_replaced(gated: Any, tiny_tokenizer: Any) -> None:
    options = {"output_hidden_states": True, "return_dict_in_generate": True}
    found = nf.Gate(gated, tiny_tokenizer, Scripted(), Flag()).generate(**batch(tiny_tokenizer), **options)
    assert len(found.hidden_states) == 12


@pytest.mark.parametrize(
    ("options", "tokens"), [({"max_length": 20}, 20), ({}, 20), ({"max_new_tokens": 3}, 3)], ids=str
)
def test_a_refusal_is_as_long_as_the_call_allows(
    gated: Any, tiny_tokenizer: Any, options: dict[str, Any], tokens: int
) -> None:
    ids = torch.tensor([[5, 6, 7]])
    gate = nf.Gate(gated, tiny_tokenizer, Scripted(frozenset({(0, 1)})), Refuse("No, " * 30))
    found = gate.generate(ids, pad_token_id=0, **options)
    assert found.shape[1] == (tokens if "max_length" in options else 3 + tokens)
    assert found.shape == gated.generate(ids, pad_token_id=0, **options).shape
