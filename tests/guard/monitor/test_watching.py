"""A monitor on a model: it sees each prompt once, changes nothing, and leaves nothing behind."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from neurofreeze.activations import Flow, tapped
from neurofreeze.config.monitor import DetectionConfig
from neurofreeze.errors import DataError, MaskError, NeuroFreezeError
from neurofreeze.guard.monitor import Monitor, Reference
from neurofreeze.guard.monitor.watching import watching
from neurofreeze.mask import NeuronMask
from neurofreeze.neurons import NeuronMap
from tests import tiny
from tests.guard.monitor.streams import mask

CONFIG = DetectionConfig(false_alarm_rate=0.05, run_length=100, window=50)


def some(architecture: str = "llama") -> NeuronMask:
    return NeuronMask.random(NeuronMap.of(tiny.config(architecture)), 0.2, seed=0)


def prompts(rows: int, seed: int, length: int = 9, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 64, (rows, length), generator=generator)
    attention = torch.ones_like(ids)
    for row in range(rows):
        cut = slice(0, row % 3) if left else slice(length - row % 3, length)
        ids[row, cut], attention[row, cut] = 0, 0
    return ids, attention


def expected(model: Any, chosen: NeuronMask, ids: torch.Tensor, attention: torch.Tensor, pooling: str) -> np.ndarray:
    """Row by row without padding, through plain hooks, in float64."""
    neuron_map, rows = NeuronMap.of(model), []
    for tokens, kept in zip(ids, attention.bool(), strict=True):
        inputs: dict[str, Any] = {}
        taps = {(site.module, "input"): partial(_keep, inputs, name) for name, site in neuron_map.sites.items()}
        with torch.no_grad(), tapped(model, taps):  # type: ignore[arg-type]
            model(input_ids=tokens[kept][None])
        row = []
        for name, site in neuron_map.sites.items():
            for number in np.flatnonzero(chosen.bits[name]):
                channels = inputs[name][:, site.writes.index[number]]
                series = channels[:, 0] if channels.shape[1] == 1 else np.sqrt((channels**2).mean(1))
                row.append(series.mean() if pooling == "mean" else series[-1])
        rows.append(row)
    return np.array(rows)


def _keep(inputs: dict[str, Any], name: str, flow: Flow) -> None:
    inputs[name] = flow.values[0].double().numpy()


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("left", [True, False])
def test_it_sees_the_pooled_activations_without_padding(pooling: Any, left: bool) -> None:
    model, chosen, seen = tiny.model(), some(), []
    ids, attention = prompts(5, 0, left=left)
    positions = (attention.cumsum(1) - 1).clamp(min=0)  # as generate gives them
    with watching(model, chosen, pooling, seen.append):
        model(input_ids=ids, attention_mask=attention, position_ids=positions)
    np.testing.assert_allclose(seen[0], expected(model, chosen, ids, attention, pooling), atol=1e-6)


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "phi3", "mixtral", "qwen3_moe", "falcon-groups"])
def test_it_sees_the_same_of_a_prompt_alone_and_in_a_batch(architecture: str) -> None:
    model, chosen = tiny.model(architecture, dtype=torch.float32), some(architecture)
    ids, attention = prompts(4, 1)
    alone: list[np.ndarray] = []
    together: list[np.ndarray] = []
    with torch.no_grad():
        with watching(model, chosen, "mean", together.append):
            model(input_ids=ids, attention_mask=attention)
        with watching(model, chosen, "mean", alone.append):
            for tokens, kept in zip(ids, attention.bool(), strict=True):
                model(input_ids=tokens[kept][None])
    assert together[0].shape == (4, chosen.count)
    np.testing.assert_allclose(np.concatenate(alone), together[0], rtol=1e-3, atol=1e-4)


def test_an_experts_neuron_counts_the_tokens_that_reached_it() -> None:
    model = tiny.model("mixtral", dtype=torch.float32)
    chosen = NeuronMask.random(NeuronMap.of(model), 0.3, seed=1)
    ids, attention = prompts(3, 2)
    site = NeuronMap.of(model).sites["layers.1.mlp.experts"]
    caught: list[Flow] = []
    seen: list[np.ndarray] = []
    catching = tapped(model, {(site.module, "input"): lambda flow: caught.append(flow)})
    with torch.no_grad(), watching(model, chosen, "mean", seen.append), catching:
        model(input_ids=ids, attention_mask=attention)
    values, routing = caught[0].values.double().numpy(), caught[0].routing
    assert routing is not None
    ends = np.cumsum(routing.counts)
    own = np.flatnonzero(chosen.bits[site.name])
    width = values.shape[1]
    want = np.zeros((3, len(own)))
    for place, number in enumerate(own):
        expert, channel = divmod(int(number), width)
        for at in range(ends[expert] - routing.counts[expert], ends[expert]):
            row, position = divmod(int(routing.tokens[at]), ids.shape[1])
            if attention[row, position]:
                want[row, place] += values[at, channel] / int(attention[row].sum())
    before = sum(int(chosen.bits[name].sum()) for name in list(chosen.bits)[: list(chosen.bits).index(site.name)])
    np.testing.assert_allclose(seen[0][:, before : before + len(own)], want, atol=1e-5)


@pytest.fixture(scope="module")
def watched() -> tuple[Any, Reference]:
    """A tiny model and the reference of its own activations on random prompts."""
    model, chosen, rows = tiny.model(dtype=torch.float32), mask(), []
    with torch.no_grad(), watching(model, chosen, "mean", rows.append):
        for seed in range(60):
            ids, attention = prompts(8, seed)
            model(input_ids=ids, attention_mask=attention)
    return model, Reference.fit(np.concatenate(rows), chosen)


def test_generation_is_the_same_and_each_prompt_counts_once(watched: Any) -> None:
    model, reference = watched
    ids, attention = prompts(3, 70, left=True)
    options = {"attention_mask": attention, "max_new_tokens": 6, "do_sample": False, "output_logits": True}
    plain = model.generate(ids, return_dict_in_generate=True, **options)
    monitor = Monitor(reference, CONFIG)
    with monitor.watching(model):
        guarded = model.generate(ids, return_dict_in_generate=True, **options)
        assert monitor.prompts == 3
        model.generate(ids[:1], attention_mask=attention[:1], max_new_tokens=2)
    assert monitor.prompts == 4
    assert torch.equal(plain.sequences, guarded.sequences)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, guarded.logits, strict=True))


def test_an_adapted_model_is_seen_once_a_prompt_called_or_generating(watched: Any) -> None:
    adapted = get_peft_model(copy.deepcopy(watched[0]), LoraConfig(target_modules=["q_proj", "down_proj"])).eval()
    ids, attention = prompts(3, 71, left=True)
    seen: list[np.ndarray] = []
    with torch.no_grad(), watching(adapted, watched[1].mask, "mean", seen.append):
        adapted(input_ids=ids, attention_mask=attention)
        assert len(seen) == 1
        adapted.generate(input_ids=ids, attention_mask=attention, max_new_tokens=3, do_sample=False)
    called, generating = seen
    np.testing.assert_allclose(called, generating, atol=1e-5)


def test_detaching_leaves_the_model_as_it_was(watched: Any) -> None:
    model, reference = watched

    def hooks() -> list[int]:
        return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]

    before, monitor = hooks(), Monitor(reference, CONFIG)
    monitor.attach(model)
    assert hooks() != before
    with pytest.raises(NeuroFreezeError, match="attached to a model already"):
        monitor.attach(model)
    monitor.detach()
    monitor.detach()
    assert hooks() == before
    model(input_ids=prompts(1, 0)[0])
    assert monitor.prompts == 0


def test_hooks_go_when_another_model_is_refused(watched: Any) -> None:
    _, reference = watched
    other, monitor = tiny.model(intermediate_size=72), Monitor(reference, CONFIG)
    with pytest.raises(MaskError, match="made for another model"):
        monitor.attach(other)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in other.modules())
    monitor.attach(tiny.model())


def test_a_mask_that_is_not_rows_by_length_is_refused(watched: Any) -> None:
    model, reference = watched
    ids, _ = prompts(2, 0)
    with watching(model, reference.mask, "mean", lambda _: None), pytest.raises(DataError, match=r"\(2, 1, 9, 9\)"):
        model(input_ids=ids, attention_mask=torch.ones(2, 1, 9, 9, dtype=torch.bool))


def test_the_attack_below_the_gates_threshold_is_caught_in_the_model(watched: Any) -> None:
    """Within the model: one neuron is clamped below its threshold at every token, the others are pushed."""
    model, reference = watched
    gate = reference.names.index("layers.1.mlp/5")
    threshold = float(np.quantile(reference.held[:, gate] * reference.scale[gate] + reference.mean[gate], 0.99))
    neuron_map = NeuronMap.of(model)
    push = torch.tensor(2.0 * reference.scale[1:], dtype=torch.float32)  # of the MLP's watched neurons
    channels = torch.from_numpy(np.flatnonzero(reference.mask.bits["layers.1.mlp"]))

    def attack(flow: Flow) -> torch.Tensor:
        values = flow.values.clone()
        values[..., channels] += push
        values[..., 5] = flow.values[..., 5].clamp(max=threshold - 1e-3)
        return values

    monitor, seen = Monitor(reference, CONFIG), []
    monitor.sinks.append(seen.append)
    rows: list[np.ndarray] = []
    attacked = tapped(model, {(neuron_map.sites["layers.1.mlp"].module, "input"): attack})
    also = watching(model, reference.mask, "mean", rows.append)
    with torch.no_grad(), attacked, monitor.watching(model), also:
        for seed in range(100, 110):
            ids, attention = prompts(4, seed)
            model(input_ids=ids, attention_mask=attention)
    assert (np.concatenate(rows)[:, gate] < threshold).all()
    assert monitor.counts["mahalanobis"] >= 20
    assert any("cusum" in verdict.alarms for verdict in seen[:10])
