"""Real parts: the default model with its real weights, through the console script, shortened to a few minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from neurofreeze.data import read
from neurofreeze.models.load import load_model, load_tokenizer
from neurofreeze.verification import verify
from tests.e2e.vllm_server import needs_vllm, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SHORT = [
    "alignment.training.steps=12",
    "training.steps=4",
    "evaluation.limit=16",
]


def neurofreeze(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "neurofreeze", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("quickstart")
    done = neurofreeze("run", *SHORT, cwd=home)
    assert done.returncode == 0, done.stdout + done.stderr
    (home / "output.txt").write_text(done.stdout)
    return home


def test_the_table_shows_every_arm_with_counts_and_intervals(folder: Path) -> None:
    output = (folder / "output.txt").read_text()
    for label in ("before fine-tuning", "no freezing", "random", "safety neurons"):
        assert label in output
    assert output.count("/16") >= 8


def test_frozen_neurons_of_both_arms_are_bit_identical_to_the_start(folder: Path) -> None:
    run = folder / "runs" / "quickstart"
    for arm in ("random", "safety"):
        found = verify(run / "aligned", run / "arms" / arm, run / "selection" / arm)
        assert found.ok
        assert found.frozen > 10_000_000
        assert found.trainable_changed > 1_000_000


def test_without_freezing_the_same_neurons_do_change(folder: Path) -> None:
    run = folder / "runs" / "quickstart"
    assert verify(run / "aligned", run / "arms" / "none", run / "selection" / "safety").changed > 1_000_000


def test_the_two_masked_arms_froze_the_same_number_of_neurons(folder: Path) -> None:
    run = folder / "runs" / "quickstart"
    results = [json.loads((run / "stages" / f"train-{arm}.json").read_text())["result"] for arm in ("random", "safety")]
    assert results[0]["frozen_neurons"] == results[1]["frozen_neurons"] == round(0.15 * 46_080) + round(0.15 * 270)


def test_no_completion_is_stored_beyond_its_opening_words(folder: Path) -> None:
    for marker in (folder / "runs" / "quickstart" / "stages").glob("evaluate-*.json"):
        words = json.loads(marker.read_text())["result"]["opening_words"]
        assert max(len(text.split()) for text in words) <= 12


def test_a_second_run_reuses_every_stage(folder: Path) -> None:
    done = neurofreeze("run", *SHORT, cwd=folder)
    assert done.returncode == 0
    assert done.stdout.count("complete, reused") == 11
    assert "train none ..." not in done.stdout


def test_one_flipped_bit_of_one_frozen_weight_is_found_and_named(folder: Path) -> None:
    run = folder / "runs" / "quickstart"
    weights = run / "arms" / "safety" / "model.safetensors"
    broken = next(
        check for check in json.loads((run / "verification.json").read_text())["parameters"] if check["frozen"]
    )
    original = weights.read_bytes()
    weights.write_bytes(_with_flipped_bit(original, broken["name"], run))
    try:
        done = neurofreeze("verify", cwd=folder)
    finally:
        weights.write_bytes(original)
    assert done.returncode == 1
    assert f"{broken['name']}: 1 of" in done.stdout


@needs_vllm
def test_vllm_serves_the_fine_tuned_checkpoint_with_the_same_answers(folder: Path) -> None:
    arm = folder / "runs" / "quickstart" / "arms" / "safety"
    asked = [*read("bundled:harmful/evaluation", responses=False)[:4], *read("bundled:instructions/evaluation")[:4]]
    tokenizer, model = load_tokenizer(arm), load_model(arm).float().eval()
    with serving(arm, folder / "vllm.log") as address:
        for example in asked:
            messages = [{"role": "user", "content": example.prompt}]
            body = {"model": "served", "messages": messages, "temperature": 0, "max_tokens": 12}
            told = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=120).raise_for_status().json()
            inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
            prompt = inputs["input_ids"].shape[1]
            answer = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, prompt:]
            assert told["usage"]["prompt_tokens"] == prompt
            assert told["choices"][0]["message"]["content"] == tokenizer.decode(answer, skip_special_tokens=True)


def _with_flipped_bit(content: bytes, name: str, run: Path) -> bytes:
    """The file with the lowest bit of the parameter's first frozen element flipped."""
    from neurofreeze import NeuronMap, NeuronMask
    from neurofreeze.models.load import load_config

    neuron_map = NeuronMap.of(load_config(run / "aligned"))
    axis, index = NeuronMask.from_pretrained(run / "selection" / "safety").select(neuron_map)[name]
    header = int.from_bytes(content[:8], "little")
    start = 8 + header + json.loads(content[8 : 8 + header])[name]["data_offsets"][0]
    element = int(index[0]) * (neuron_map.shapes[name][1] if axis == 0 else 1)
    changed = bytearray(content)
    changed[start + 2 * element] ^= 1  # bfloat16, little endian
    return bytes(changed)
