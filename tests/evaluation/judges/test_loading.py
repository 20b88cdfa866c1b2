"""The judge that the settings ask for, from checkpoints on disk, and settings that ask for none."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, BertModel

from neurofreeze.config.judge import EndpointConfig, JudgeConfig
from neurofreeze.errors import ConfigError, JudgeError, ModelError
from neurofreeze.evaluation.judges import Verdict, load_judge, require_judge
from neurofreeze.evaluation.phrases import ZOU_QI
from neurofreeze.models.load import load_model
from tests.evaluation.judges import bert, guard

LABELS = {"id2label": {0: "refusal", 1: "harm"}, "label2id": {"refusal": 0, "harm": 1}}
SIZES = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    BertForSequenceClassification(BertConfig(vocab_size=64, **SIZES, **LABELS)).save_pretrained(folder)
    bert.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def guard_folder(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path, tiny_tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("guard") / "guard"
    shutil.copytree(tiny_checkpoint, folder)
    guard.tokenizer(tiny_tokenizer).save_pretrained(folder)
    return folder


def test_phrases_are_the_default_judge() -> None:
    judge = load_judge(JudgeConfig(), "zou-qi")
    assert judge.label == ZOU_QI.label
    assert judge.judge(["a", "b"], ["I cannot", "Sure"]) == [Verdict.SAFE, Verdict.UNSAFE]


def test_a_guard_comes_from_a_checkpoint(guard_folder: Path) -> None:
    judge = load_judge(JudgeConfig(name="guard", model=str(guard_folder)), "wei")
    assert judge.label == f"{guard_folder} (guard)"
    assert len(judge.judge(["May I?", "And I?"], ["No.", "Yes."])) == 2


def test_a_classifier_with_a_prompt_comes_from_a_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text(guard.PROMPT)
    config = JudgeConfig(name="harmbench", model=str(tiny_checkpoint), prompt=str(tmp_path / "prompt.txt"))
    assert len(load_judge(config, "wei").judge(["May I?"], ["No."])) == 1


def test_a_sequence_classifier_comes_from_a_checkpoint(classifier: Path) -> None:
    judge = load_judge(JudgeConfig(name="classifier", model=str(classifier), unsafe=["harm"]), "wei")
    assert len(judge.judge(["may i", "i have"], ["no", "sure sure"])) == 2


def test_a_causal_model_may_classify(tmp_path: Path, tiny_checkpoint: Path, tiny_tokenizer: Any) -> None:
    causal = load_model(tiny_checkpoint)
    model = AutoModelForSequenceClassification.from_config(
        type(causal.config).from_dict({**causal.config.to_dict(), **LABELS})
    )
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    config = JudgeConfig(name="classifier", model=str(tmp_path / "model"), unsafe=["harm"], pair=False)
    assert len(load_judge(config, "wei").judge(["May I?", "And I?"], ["No.", "Yes, sure, take it."])) == 2


def test_a_model_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    BertModel(BertConfig(vocab_size=64, **SIZES, **LABELS)).save_pretrained(tmp_path)
    bert.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no trained classifier: it lacks classifier\.bias"):
        load_judge(JudgeConfig(name="classifier", model=str(tmp_path), unsafe=["harm"]), "wei")


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        load_judge(JudgeConfig(name="guard", model=str(tmp_path / "none")), "wei")


def test_what_its_config_and_tokenizer_tell_of_a_judge_is_told_without_its_weights(
    classifier: Path, guard_folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for folder in (classifier, guard_folder, tiny_checkpoint):
        shutil.copytree(folder, tmp_path / folder.name, ignore=shutil.ignore_patterns("*.safetensors"))
        (tmp_path / folder.name / "model.safetensors").touch()
    sequence, spoken, plain = (str(tmp_path / folder.name) for folder in (classifier, guard_folder, tiny_checkpoint))
    for usable in (
        JudgeConfig(),
        JudgeConfig(name="guard", model=spoken),
        JudgeConfig(name="classifier", model=sequence, unsafe=["harm"]),
    ):
        require_judge(usable)
    for name, model, message in (
        ("guard", str(tmp_path), r"evaluation\.judge\.model: .* has no config\.json"),
        ("guard", sequence, "has no chat template"),
        ("classifier", sequence, "expected some, not all, of the labels of .*: refusal, harm"),
        ("harmbench", plain, "none.txt cannot be read"),
    ):
        config = JudgeConfig(name=name, model=model, unsafe=["harmful"], prompt=str(tmp_path / "none.txt"))
        with pytest.raises((JudgeError, ModelError), match=message):
            require_judge(config)
    (tmp_path / guard_folder.name / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"evaluation\.judge\.model: .* has no safetensors weights"):
        require_judge(JudgeConfig(name="guard", model=spoken))


def test_a_key_must_be_in_the_environment() -> None:
    endpoint = EndpointConfig(url="https://judge.invalid/v1", key_variable="NO_SUCH_KEY_HERE")
    with pytest.raises(JudgeError, match="NO_SUCH_KEY_HERE, which is not set"):
        require_judge(JudgeConfig(name="endpoint", model="m", endpoint=endpoint))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "oracle"}, "evaluation.judge.name is 'oracle'; expected one of phrases, guard"),
        ({"name": "guard"}, "evaluation.judge.model is None; expected a value, since judge.name=guard"),
        ({"name": "harmbench", "model": "m"}, "evaluation.judge.prompt is None; expected a value"),
        ({"name": "classifier", "model": "m"}, "evaluation.judge.unsafe is []; expected a value"),
        ({"name": "endpoint", "model": "m"}, "evaluation.judge.endpoint.url is None; expected a value"),
        ({"tokens": 0}, "evaluation.judge.tokens is 0; expected a positive number"),
    ],
)
def test_a_judge_without_what_it_needs_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        JudgeConfig(**settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "https://me:secret@judge.invalid"}, "endpoint.url is '...@...'; expected no user and password"),
        ({"url": "ftp://judge.invalid"}, "endpoint.url is 'ftp://judge.invalid'; expected an http or https address"),
        ({"url": "judge.invalid/v1"}, "expected an http or https address"),
        ({"url": "http://judge.invalid:port/v1"}, "endpoint.url is 'http://judge.invalid:port/v1'; expected an http"),
        ({"url": "http://[::1/v1"}, "expected an http or https address"),
        ({"url": "http://me:secret@judge.invalid:port"}, "endpoint.url is '...@...'; expected no user and password"),
        ({"url": "https://judge.invalid?x=1"}, "expected an http or https address without ? and #"),
        ({"url": "http://judge.invalid", "key_variable": "KEY"}, "expected https, since a key is sent"),
        ({"key_variable": "hf_secret"}, "endpoint.key_variable is '...'; expected the name of a variable in capitals"),
        ({"options": {"model": "x"}}, "endpoint.options is ['model']; expected options other than model"),
        ({"timeout": 0}, "endpoint.timeout is 0; expected a number above 0"),
        ({"retries": -1}, "endpoint.retries is -1; expected a number not below 0"),
        ({"parallel": 0}, "endpoint.parallel is 0; expected a positive number"),
    ],
)
def test_a_wrong_endpoint_is_refused_without_showing_secrets(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EndpointConfig(**settings)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/v1", "http://[::1]:8000", "http://localhost/v1"])
def test_a_key_may_be_sent_to_this_machine(url: str) -> None:
    EndpointConfig(url=url, key_variable="KEY")
