"""A gate that is off, or never fires, changes nothing; one that fires changes its own rows and says what it did."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, StoppingCriteria

import neurofreeze as nf
from neurofreeze.data.examples import Example
from neurofreeze.errors import DataError, GuardError
from neurofreeze.guard.events import Event
from neurofreeze.guard.reactions import Blend, Flag, Reflect, Refuse
from neurofreeze.guard.triggers import LifTrigger, NeuronTrigger, ProbeTrigger
from tests.guard.scripted import PROMPTS, Scripted, Tape, batch

ASKED = [Example.of("never seen")]
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9},
    "two answers a prompt": {"do_sample": True, "num_return_sequences": 2},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "without a cache": {"use_cache": False},
    "prefill in chunks": {"prefill_chunk_size": 3},
}


@pytest.fixture(scope="module")
def gates(gated: Any, tiny_tokenizer: Any, expert: Any, harmful: list[Example], benign: list[Example]) -> list[Any]:
    """One gate of each trigger, each with another reaction, that nothing can make fire."""
    triggers = (
        (NeuronTrigger.fit(gated, tiny_tokenizer, harmful[:6], benign[:6], count=3), Refuse(), None),
        (ProbeTrigger.fit(gated, tiny_tokenizer, harmful[:6], benign[:6], layer=1), Reflect(), None),
        (LifTrigger(), Blend(), expert),
    )
    found = [nf.Gate(gated, tiny_tokenizer, trigger, reaction, expert=e) for trigger, reaction, e in triggers]
    for gate in found:
        gate.threshold = 1e9
    return found


def generate(generator: Any, inputs: dict[str, Any], **options: Any) -> Any:
    torch.manual_seed(3)
    return generator.generate(**inputs, **options)


@pytest.mark.parametrize("way", WAYS)
def test_a_gate_that_never_fires_or_is_off_changes_nothing(
    gated: Any, tiny_tokenizer: Any, gates: list[Any], way: str
) -> None:
    inputs = batch(tiny_tokenizer)
    options = {**WAYS[way], "return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    expected = generate(gated, inputs, **options)
    off = nf.Gate(gated, tiny_tokenizer, Scripted(frozenset({(0, 0)})), Refuse())
    off.enabled = False
    for gate in (off, *gates):
        found = generate(gate, inputs, **options)
        assert type(found) is type(expected)
        assert torch.equal(found.sequences, expected.sequences)
        for name in ("scores", "logits"):
            assert all(map(torch.equal, found[name], expected[name])), name
        rows = len(expected.sequences) if gate.enabled else 0
        assert [(event.row, event.outcome) for event in gate.events] == [(row, "passed") for row in range(rows)]
    assert torch.equal(generate(gates[0], inputs, **WAYS[way]), expected.sequences)


def test_a_stream_is_that_of_the_model(gated: Any, tiny_tokenizer: Any, gates: list[Any]) -> None:
    inputs = batch(tiny_tokenizer, PROMPTS[:1])
    tapes = [Tape() for _ in range(4)]
    for generator, tape in zip([gated, *gates], tapes, strict=True):
        generator.generate(**inputs, streamer=tape)
    assert all((tape.tokens, tape.ended) == (tapes[0].tokens, 1) for tape in tapes)


def test_a_generation_config_and_one_prompt_without_a_mask_are_taken(gated: Any, tiny_tokenizer: Any) -> None:
    gate = nf.Gate(gated, tiny_tokenizer, Scripted(), Refuse())
    ids = batch(tiny_tokenizer, PROMPTS[:1])["input_ids"]
    config = GenerationConfig(max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert torch.equal(gate.generate(ids, config), gated.generate(ids, config))


def test_only_the_first_steps_are_judged_and_then_nothing_looks_on(
    gated: Any, tiny_tokenizer: Any, gates: list[Any]
) -> None:
    trigger = Scripted()
    nf.Gate(gated, tiny_tokenizer, trigger, Flag(), steps=3).generate(**batch(tiny_tokenizer))
    assert trigger.seen == [(row, step) for step in range(3) for row in range(3)]
    hooked = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in gated.modules()]
    counts: list[int] = []
    probe = gates[1]
    layer = gated.get_submodule(probe.trigger.module)
    handle = gated.register_forward_hook(lambda *_: counts.append(len(layer._forward_hooks)))
    generate(probe, batch(tiny_tokenizer))
    handle.remove()
    assert counts == [1] * probe.steps + [0] * (12 - probe.steps)
    assert hooked == [0] * len(hooked)


def test_finished_rows_are_not_judged(gated: Any, tiny_tokenizer: Any) -> None:
    inputs = batch(tiny_tokenizer)
    length, end, ends = inputs["input_ids"].shape[1], 9, [2, 5, 99]

    def ending(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Each row comes to the token at a step of its own, and to no other time."""
        scores = scores.clone()
        scores[:, end] = -torch.inf
        scores[[step == ids.shape[1] - length for step in ends], end] = 1e3
        return scores

    inputs["logits_processor"] = [ending]

    class Over(StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return input_ids[:, -1] == end

    text = tiny_tokenizer.decode([end])
    ways: tuple[dict[str, Any], ...] = (
        {"eos_token_id": end},
        {"stopping_criteria": [Over()]},
        {"stop_strings": [text], "tokenizer": tiny_tokenizer},
    )
    for options in ways:
        trigger = Scripted()
        gate = nf.Gate(gated, tiny_tokenizer, trigger, Flag(), steps=None)
        assert torch.equal(gate.generate(**inputs, **options), gated.generate(**inputs, **options))
        assert all(step <= ends[row] for row, step in trigger.seen), options
        if "stop_strings" not in options:  # a stop string may also come about otherwise
            assert {row: max(s for r, s in trigger.seen if r == row) for row in range(3)} == {
                row: min(end, 11) for row, end in enumerate(ends)
            }


def test_flagging_changes_no_token(gated: Any, tiny_tokenizer: Any) -> None:
    inputs = batch(tiny_tokenizer)
    gate = nf.Gate(gated, tiny_tokenizer, Scripted(frozenset({(1, 2), (1, 3)})), Flag())
    assert torch.equal(gate.generate(**inputs), gated.generate(**inputs))
    assert [(event.row, event.step, event.outcome) for event in gate.events] == [
        (1, 2, "flagged"),
        (0, 7, "passed"),
        (2, 7, "passed"),
    ]


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 0.7}], ids=["greedy", "sampling"])
def test_a_refusal_takes_the_place_of_its_row_alone(gated: Any, tiny_tokenizer: Any, options: dict[str, Any]) -> None:
    inputs = batch(tiny_tokenizer)
    length = inputs["input_ids"].shape[1]
    expected = generate(gated, inputs, **options)
    seen: list[Event] = []
    trigger = Scripted(frozenset({(1, 3)}))
    gate = nf.Gate(gated, tiny_tokenizer, trigger, Refuse("No."), on_event=seen.append)
    found = generate(gate, inputs, return_dict_in_generate=True, output_scores=True, **options)
    refusal = [*tiny_tokenizer("No.", add_special_tokens=False)["input_ids"], tiny_tokenizer.eos_token_id]
    answer = found.sequences[1, length:].tolist()
    assert answer == refusal + [tiny_tokenizer.pad_token_id] * (len(answer) - len(refusal))
    assert torch.equal(found.sequences[::2], expected[::2])
    assert torch.stack(found.scores, 1)[1].argmax(-1).tolist() == answer, "scores are certain of the refusal"
    assert (1, 4) not in trigger.seen, "what is settled is not judged again"
    assert seen == gate.events
    assert [(event.row, event.step, event.outcome) for event in seen if event.outcome != "passed"] == [
        (1, 3, "blocked")
    ]
    assert found.past_key_values is None


def test_a_row_decides_as_it_would_alone(gated: Any, tiny_tokenizer: Any, gates: list[Any]) -> None:
    found = {}
    for gate in gates:
        gate.generate(**batch(tiny_tokenizer))
        together = {event.row: event.value for event in gate.events}
        for row, prompt in enumerate(PROMPTS):
            gate.generate(**batch(tiny_tokenizer, [prompt]))
            found[gate.trigger.name, row] = (gate.events[0].value, together[row])
    for key, (alone, together) in found.items():
        assert alone == pytest.approx(together, rel=1e-5), key


def test_when_all_answers_are_replaced_generation_ends(gated: Any, tiny_tokenizer: Any) -> None:
    passes: list[int] = []
    handle = gated.register_forward_hook(lambda *_: passes.append(1))
    trigger = Scripted(frozenset((row, 0) for row in range(3)))
    gate = nf.Gate(gated, tiny_tokenizer, trigger, Refuse("No, I will not help with this at all, not now, not ever."))
    found = gate.generate(**batch(tiny_tokenizer))
    handle.remove()
    assert len(passes) == 1
    assert found.shape[1] == batch(tiny_tokenizer)["input_ids"].shape[1] + 12, "cut to max_new_tokens"
    assert torch.equal(found[0, -12:], found[1, -12:])


def test_nothing_is_streamed_that_is_replaced(gated: Any, tiny_tokenizer: Any) -> None:
    inputs = batch(tiny_tokenizer, PROMPTS[:1])
    for step, own in ((2, False), (9, True)):
        tape = Tape()
        gate = nf.Gate(gated, tiny_tokenizer, Scripted(frozenset({(0, step)})), Refuse("No."), steps=4)
        found = gate.generate(**inputs, streamer=tape)
        assert torch.equal(found, gated.generate(**inputs)) == own
        assert tape.tokens[0] == inputs["input_ids"][0].tolist()
        assert [token for tokens in tape.tokens[1:] for token in tokens] == found[
            0, inputs["input_ids"].shape[1] :
        ].tolist()
        assert tape.ended == 1


def test_streaming_begins_once_the_gate_has_let_the_answer_through(gated: Any, tiny_tokenizer: Any) -> None:
    sizes: list[int] = []
    tape = Tape()
    handle = gated.register_forward_hook(lambda *_: sizes.append(len(tape.tokens)))
    gate = nf.Gate(gated, tiny_tokenizer, Scripted(), Refuse(), steps=3)
    gate.generate(**batch(tiny_tokenizer, PROMPTS[:1]), streamer=tape)
    handle.remove()
    assert sizes == [1, 1, 1, *range(4, 13)], "the prompt; then 3 tokens at once, and each as it comes"


def test_an_adapted_model_is_guarded_as_it_runs(
    gated: Any, tiny_tokenizer: Any, expert: Any, harmful: list[Example], benign: list[Example]
) -> None:
    adapted = get_peft_model(copy.deepcopy(gated), LoraConfig(init_lora_weights=False, target_modules=["q_proj"]))
    probe = ProbeTrigger.fit(adapted, tiny_tokenizer, harmful[:3], benign[:3], layer=1, steps=1)
    gates = [
        nf.Gate(adapted, tiny_tokenizer, probe, Flag()),
        nf.Gate(adapted, tiny_tokenizer, LifTrigger(), Flag(), expert=expert),
    ]
    inputs = batch(tiny_tokenizer)
    for gate in gates:
        gate.threshold = 1e9
        assert torch.equal(gate.generate(**inputs), adapted.generate(**inputs))
        assert len(gate.events) == 3


def test_an_error_leaves_no_hook_behind(gated: Any, tiny_tokenizer: Any, gates: list[Any]) -> None:
    def failing(event: Event) -> None:
        raise RuntimeError("caller")

    gate = nf.Gate(gated, tiny_tokenizer, gates[1].trigger, Flag(), on_event=failing)
    gate.threshold = -1e9
    with pytest.raises(RuntimeError, match="caller"):
        gate.generate(**batch(tiny_tokenizer))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in gated.modules())


def test_a_measurement_that_is_no_number_is_an_error_not_a_pass(gated: Any, tiny_tokenizer: Any) -> None:
    class Broken(Scripted):
        def values(self, step: Any) -> torch.Tensor:
            return torch.full((len(step.rows),), float("nan"))

    with pytest.raises(GuardError, match="expected finite numbers"):
        nf.Gate(gated, tiny_tokenizer, Broken(), Flag()).generate(**batch(tiny_tokenizer))


def test_without_a_threshold_nothing_is_generated(gated: Any, tiny_tokenizer: Any, gates: list[Any]) -> None:
    with pytest.raises(GuardError, match="no threshold; call calibrate"):
        nf.Gate(gated, tiny_tokenizer, gates[0].trigger, Flag()).generate(**batch(tiny_tokenizer))


def test_a_threshold_that_is_no_number_is_refused(gated: Any, tiny_tokenizer: Any) -> None:
    gate = nf.Gate(gated, tiny_tokenizer, Scripted(), Refuse())
    with pytest.raises(GuardError, match="would never fire; expected a number"):
        gate.threshold = float("nan")
    assert gate.threshold == Scripted.threshold


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m, t, e: nf.Gate(m, t, Scripted(), Flag(), steps=0), "steps is 0"),
        (lambda m, t, e: nf.Gate(m, t, LifTrigger(), Flag()), "needs an expert"),
        (lambda m, t, e: nf.Gate(m, t, Scripted(), Flag(), expert=e), "needs no expert"),
        (lambda m, t, e: Refuse(" "), "some words"),
        (lambda m, t, e: Blend(alpha=1.5), "alpha is 1.5"),
        (lambda m, t, e: Blend(lasting=0), "lasting is 0"),
        (lambda m, t, e: Reflect(cautious="maybe"), "cautious is 'maybe'"),  # type: ignore[arg-type]
        (lambda m, t, e: Reflect(draft=-1), "draft is -1"),
        (lambda m, t, e: Reflect(text=None), "some words"),  # type: ignore[arg-type]
        (lambda m, t, e: LifTrigger(tau=0.5), "tau is 0.5"),
        (lambda m, t, e: LifTrigger(keep=1.0), "keep is 1.0"),
        (lambda m, t, e: LifTrigger(tau="a"), "tau is 'a'"),  # type: ignore[arg-type]
        (lambda m, t, e: LifTrigger(tau=math.inf), "tau is inf"),
        (lambda m, t, e: LifTrigger(keep=None), "keep is None"),  # type: ignore[arg-type]
        (lambda m, t, e: Blend(alpha="a"), "alpha is 'a'"),  # type: ignore[arg-type]
        (lambda m, t, e: NeuronTrigger.fit(m, t, ASKED, ASKED, count="a"), "count is 'a'"),  # type: ignore[arg-type]
        (lambda m, t, e: NeuronTrigger.fit(m, t, ASKED, ASKED, count=2.5), "count is 2.5"),  # type: ignore[arg-type]
        (lambda m, t, e: ProbeTrigger.fit(m, t, ASKED, ASKED, layer="a"), "layer is 'a'"),  # type: ignore[arg-type]
        (lambda m, t, e: ProbeTrigger.fit(m, t, ASKED, ASKED, layer=True), "layer is True"),
    ],
)
def test_what_makes_no_sense_is_refused(
    gated: Any, tiny_tokenizer: Any, expert: Any, make: Callable[..., Any], message: str
) -> None:
    with pytest.raises(GuardError, match=message):
        make(gated, tiny_tokenizer, expert)


def test_calibration_keeps_to_its_target_and_to_new_prompts(
    gated: Any, tiny_tokenizer: Any, gates: list[Any], harmful: list[Example], benign: list[Example]
) -> None:
    gate = nf.Gate(gated, tiny_tokenizer, gates[1].trigger, Flag(), steps=3)
    found = gate.calibrate(harmful[6:], benign[6:], target=0.2)
    assert found.benign.count <= 0.2 * found.benign.total == 0.2 * 14
    assert gate.threshold == found.threshold
    fired = 0
    for example in benign[6:]:
        ids = tiny_tokenizer.apply_chat_template(
            example.messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        gate.generate(**ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
        fired += gate.events[0].outcome == "flagged"
        assert gate.events[0].benign_rate is not None
    assert fired == found.benign.count, "prompts trigger as they did in calibration"
    gate.require_unseen([Example.of("never seen")])
    with pytest.raises(DataError, match="fitted the trigger"):
        gate.calibrate(harmful[5:], benign[6:])
    with pytest.raises(DataError, match="calibrated the gate"):
        gate.require_unseen(benign[10:12])
    with pytest.raises(DataError, match="in both harmful and benign"):
        gate.calibrate(harmful[6:], [*benign[6:], harmful[7]])
    gate.threshold = 2.0
    assert gate.calibration is None
