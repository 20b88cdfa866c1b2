"""Loading: safetensors only, in the precision asked for, with a tokenizer that can chat and pad."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from neurofreeze.errors import ModelError, NeuroFreezeWarning
from neurofreeze.models.load import load_config, load_model, load_tokenizer


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(tiny_checkpoint, tmp_path / "tiny")
    return tmp_path / "tiny"


def test_the_checkpoint_s_own_precision_is_kept(tiny_checkpoint: Path) -> None:
    assert load_model(tiny_checkpoint).dtype == torch.bfloat16


def test_a_wider_precision_holds_the_same_values(tiny_checkpoint: Path) -> None:
    stored = load_file(tiny_checkpoint / "model.safetensors")
    model = load_model(tiny_checkpoint, torch.float32)
    assert model.dtype == torch.float32
    assert all(torch.equal(p.bfloat16(), stored[name]) for name, p in model.named_parameters() if name in stored)


def test_pickled_weights_are_refused(checkpoint: Path) -> None:
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"tiny cannot be loaded: .*safetensors"):
        load_model(checkpoint)


def test_truncated_weights_are_refused(checkpoint: Path) -> None:
    content = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="tiny cannot be loaded"):
        load_model(checkpoint)


def test_weights_that_are_not_there_are_not_made_up(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"tiny lacks 1 weights .*: model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(checkpoint)


def test_weights_of_another_shape_are_refused(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(70, 35, dtype=torch.bfloat16)
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="tiny cannot be loaded"):
        load_model(checkpoint)


def test_code_in_a_checkpoint_is_not_run(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (checkpoint / "evil.py").write_text("open('ran', 'w').close()\nclass Config: ...\nclass Model: ...\n")
    with pytest.raises(ModelError, match=r"no usable config\.json"):
        load_config(checkpoint)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(checkpoint)
    assert not Path("ran").exists()


@pytest.mark.parametrize("content", ["{", '{"model_type": "no-such-model"}'])
def test_a_malformed_config_is_one_line(checkpoint: Path, content: str) -> None:
    (checkpoint / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=r"tiny has no usable config\.json") as caught:
        load_config(checkpoint)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_tokenizer_is_refused(checkpoint: Path) -> None:
    for path in [*checkpoint.glob("token*"), *checkpoint.glob("*.jinja")]:
        path.unlink()
    with pytest.raises(ModelError, match="tiny has no usable tokenizer"):
        load_tokenizer(checkpoint)


@pytest.mark.parametrize("load", [load_config, load_model, load_tokenizer])
def test_a_folder_that_is_gone_is_not_taken_for_a_hub_id(load: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no folder .*gone, or no longer; expected a checkpoint"):
        load(tmp_path / "gone")


def test_a_chat_template_is_kept(tiny_checkpoint: Path) -> None:
    assert "add_generation_prompt" in load_tokenizer(tiny_checkpoint).chat_template


def test_without_a_chat_template_plain_turns_are_used_with_a_warning(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").unlink()
    with pytest.warns(NeuroFreezeWarning, match="tiny has no chat template; using plain 'User: ... Assistant:' turns"):
        tokenizer = load_tokenizer(checkpoint)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    asked = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert asked == "User: Hi</s>\nAssistant:"
    assert whole == "User: Hi</s>\nAssistant: Hello</s>\n"


def test_a_missing_padding_token_is_the_end_token(checkpoint: Path) -> None:
    path = checkpoint / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["pad_token"]
    path.write_text(json.dumps(config), encoding="utf-8")
    tokenizer = load_tokenizer(checkpoint)
    assert tokenizer.pad_token == "</s>"
