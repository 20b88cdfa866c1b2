"""Neurons and probes against their formulas, on activations read from whole passes of single prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import neurofreeze as nf
from neurofreeze.data.batches import prompt_ids
from neurofreeze.data.examples import Example
from neurofreeze.guard.reactions import Flag
from neurofreeze.guard.triggers import NeuronTrigger, ProbeTrigger
from neurofreeze.strategies.scores import NeuronScores
from tests import tiny
from tests.guard.scripted import batch

MLP, MODULE = "layers.1.mlp", "model.layers.1.mlp.down_proj"


def inputs_of(model: Any, module: str, ids: list[int]) -> Any:
    """Float64 [channels]: what the module reads at the last token."""
    found: list[Any] = []
    handle = model.get_submodule(module).register_forward_pre_hook(lambda _, args: found.append(args[0][0, -1]))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    handle.remove()
    return found[0].double().numpy()


def outputs_of(model: Any, layer: int, ids: list[int]) -> Any:
    """Float64 [hidden]: what a decoder layer gives out at the last token."""
    found: list[Any] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        found.append((output[0] if isinstance(output, tuple) else output)[0, -1])

    handle = model.model.layers[layer].register_forward_hook(keep)
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    handle.remove()
    return found[0].double().numpy()


def measured(gated: Any, tokenizer: Any, trigger: Any) -> tuple[dict[tuple[int, int], float], Any]:
    """Every value by row and step, and the tokens."""
    values: dict[tuple[int, int], float] = {}
    gate = nf.Gate(gated, tokenizer, trigger, Flag(), steps=4)
    original = type(trigger).watch

    class Noting(type(trigger)):  # type: ignore[misc]
        def watch(self, model: Any, batch: int, live: Any) -> Any:
            context = original(trigger, model, batch, live)
            return _Noted(context, values)

    gate.trigger = Noting.__new__(Noting)
    gate.threshold = 1e9
    return values, gate.generate(**batch(tokenizer))


class _Noted:
    def __init__(self, context: Any, values: dict[tuple[int, int], float]) -> None:
        self.context, self.noted = context, values

    def __enter__(self) -> Any:
        self.watch = self.context.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self.context.__exit__(*error)

    def values(self, step: Any) -> Any:
        found = self.watch.values(step)
        self.noted.update({(row, step.number): value for row, value in zip(step.rows, found.tolist(), strict=True)})
        return found

    def fired(self, rows: list[int]) -> None:
        self.watch.fired(rows)


def begun(model: Any, tokenizer: Any, examples: list[Example], steps: int) -> list[list[int]]:
    """The token ids before each of the first steps of every prompt's greedy answer."""
    found = []
    for example in examples:
        ids = prompt_ids(tokenizer, example)
        whole = model.generate(torch.tensor([ids]), max_new_tokens=steps, do_sample=False, pad_token_id=0)[0].tolist()
        found += [whole[: len(ids) + step] for step in range(steps)]
    return found


def sequences(tokens: Any, tokenizer: Any) -> dict[tuple[int, int], list[int]]:
    """Token ids before each row's step, without padding."""
    encoded = batch(tokenizer)
    length = encoded["input_ids"].shape[1]
    return {
        (row, step): ids[length - int(encoded["attention_mask"][row].sum()) : length + step]
        for row, ids in enumerate(tokens.tolist())
        for step in range(4)
    }


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_neurons(gated: Any, tiny_tokenizer: Any, harmful: list[Example], benign: list[Example], pool: Any) -> None:
    mask = nf.NeuronMask.none(nf.NeuronMap.of(gated))
    bits = {name: np.zeros_like(found) for name, found in mask.bits.items()}
    bits[MLP][10:40] = True
    among = nf.NeuronMask(bits, mask.config)
    trigger = NeuronTrigger.fit(
        gated, tiny_tokenizer, harmful[:8], benign[:8], among=among, count=3, pool=pool, steps=2, batch_size=3
    )
    module = MODULE
    sets = [
        np.stack([inputs_of(gated, module, ids) for ids in begun(gated, tiny_tokenizer, examples, 2)])[:, 10:40]
        for examples in (harmful[:8], benign[:8])
    ]
    effect = (sets[0].mean(0) - sets[1].mean(0)) / np.sqrt((sets[0].var(0) + sets[1].var(0)) / 2)
    chosen = np.sort(np.argsort(-abs(effect))[:3])
    assert trigger.channels[module].tolist() == [[10 + index] for index in chosen]
    values, tokens = measured(gated, tiny_tokenizer, trigger)
    assert len(values) == 12
    for key, ids in sequences(tokens, tiny_tokenizer).items():
        activations = inputs_of(gated, module, ids)[10:40][chosen]
        standard = np.sign(effect[chosen]) * (activations - sets[1].mean(0)[chosen]) / sets[1].std(0)[chosen]
        assert values[key] == pytest.approx(getattr(standard, pool)(), rel=1e-4), key


def test_scores_choose_the_highest_neurons_and_heads_are_norms(
    gated: Any, tiny_tokenizer: Any, harmful: list[Example], benign: list[Example]
) -> None:
    neuron_map = nf.NeuronMap.of(gated)
    scores = {name: np.zeros(site.neurons, np.float32) for name, site in neuron_map.sites.items()}
    scores["layers.0.attention"][4] = 3
    scores["layers.1.mlp"][7] = 2
    among = NeuronScores(neuron_map, scores, {})
    trigger = NeuronTrigger.fit(gated, tiny_tokenizer, harmful[:4], benign[:4], among=among, count=1, steps=1)
    assert {module: index.tolist() for module, index in trigger.channels.items()} == {
        "model.layers.0.self_attn.o_proj": [list(range(24, 30))]
    }
    levels = [
        np.linalg.norm(inputs_of(gated, "model.layers.0.self_attn.o_proj", prompt_ids(tiny_tokenizer, e))[24:30])
        for e in benign[:4]
    ]
    assert trigger.mean.tolist() == pytest.approx([np.mean(levels)], rel=1e-5)
    both = NeuronTrigger.fit(gated, tiny_tokenizer, harmful[:4], benign[:4], among=among, count=2)
    assert {module: len(index) for module, index in both.channels.items()} == {
        "model.layers.0.self_attn.o_proj": 1,
        "model.layers.1.mlp.down_proj": 1,
    }
    with pytest.raises(nf.GuardError, match="count is 0"):
        NeuronTrigger.fit(gated, tiny_tokenizer, harmful[:4], benign[:4], count=0)


@pytest.mark.parametrize("kind", ["logistic", "mean-difference"])
def test_probe(gated: Any, tiny_tokenizer: Any, harmful: list[Example], benign: list[Example], kind: Any) -> None:
    trigger = ProbeTrigger.fit(
        gated, tiny_tokenizer, harmful[:8], benign[:8], layer=1, kind=kind, steps=2, batch_size=3
    )
    states = [
        np.stack([outputs_of(gated, 1, ids) for ids in begun(gated, tiny_tokenizer, examples, 2)])
        for examples in (harmful[:8], benign[:8])
    ]
    if kind == "mean-difference":
        direction = states[0].mean(0) - states[1].mean(0)
        direction /= np.linalg.norm(direction)
        np.testing.assert_allclose(trigger.weight.numpy(), direction, rtol=1e-3, atol=1e-6)
        margins = [abs(float(direction @ side.mean(0)) + float(trigger.bias)) for side in states]
        assert margins[0] == pytest.approx(margins[1], rel=1e-3), "halfway between the means"
    scores = [side @ trigger.weight.double().numpy() + float(trigger.bias) for side in states]
    assert scores[0].mean() > scores[1].mean()
    values, tokens = measured(gated, tiny_tokenizer, trigger)
    for key, ids in sequences(tokens, tiny_tokenizer).items():
        expected = outputs_of(gated, 1, ids) @ trigger.weight.double().numpy() + float(trigger.bias)
        assert values[key] == pytest.approx(expected, rel=1e-4, abs=1e-5), key


def test_the_layer_that_tells_best_is_chosen(gated: Any, tiny_tokenizer: Any, harmful: Any, benign: Any) -> None:
    trigger = ProbeTrigger.fit(gated, tiny_tokenizer, harmful[:10], benign[:10])
    assert trigger.module in ("model.layers.0", "model.layers.1")
    assert len(trigger.prompts) == 20
    with pytest.raises(nf.GuardError, match="at least 5 of each"):
        ProbeTrigger.fit(gated, tiny_tokenizer, harmful[:4], benign[:10])
    with pytest.raises(nf.GuardError, match="layer is 2; expected one of 0 to 1"):
        ProbeTrigger.fit(gated, tiny_tokenizer, harmful[:4], benign[:4], layer=2)
    with pytest.raises(nf.DataError, match="no prompts"):
        ProbeTrigger.fit(gated, tiny_tokenizer, [], benign[:4], layer=1)


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "gpt_neox", "phi3", "gemma2", "bloom"])
def test_other_architectures(architecture: str, tiny_tokenizer: Any, harmful: Any, benign: Any) -> None:
    sizes = {"n_positions": 512} if architecture == "gpt2" else {"max_position_embeddings": 512}
    # Eager attention gives NaN to rows of padding in float64, whatever looks on.
    model = tiny.model(architecture, dtype=torch.float32, vocab_size=len(tiny_tokenizer), **sizes)
    for trigger in (
        NeuronTrigger.fit(model, tiny_tokenizer, harmful[:3], benign[:3], count=2, steps=2),
        ProbeTrigger.fit(model, tiny_tokenizer, harmful[:3], benign[:3], layer=1, steps=2),
    ):
        gate = nf.Gate(model, tiny_tokenizer, trigger, Flag(), steps=3)
        gate.threshold = 1e9
        inputs = batch(tiny_tokenizer)
        assert torch.equal(gate.generate(**inputs), model.generate(**inputs))
        assert len(gate.events) == 3


def test_experts_are_refused(tiny_tokenizer: Any, harmful: Any, benign: Any) -> None:
    model = tiny.model("mixtral", vocab_size=len(tiny_tokenizer), max_position_embeddings=512)
    with pytest.raises(nf.ArchitectureError, match="stack of experts"):
        NeuronTrigger.fit(model, tiny_tokenizer, harmful[:3], benign[:3], count=2)
