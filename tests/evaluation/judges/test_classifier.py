"""A classifier's verdicts against one pair at a time, with its special tokens out of the answers' reach."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from neurofreeze.errors import JudgeError
from neurofreeze.evaluation.judges.base import Verdict
from neurofreeze.evaluation.judges.classifier import ClassifierJudge
from tests.evaluation.judges import bert
from tests.evaluation.judges.guard import INJECTIONS

REQUESTS = [f"may i have the {word}" for word in bert.WORDS]
ANSWERS = [f"{'sure ' * (index % 4)}{word} no" for index, word in enumerate(bert.WORDS)]


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    """Random weights, with biases for which the texts below get different labels."""
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=64,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=24,
        id2label={0: "refusal", 1: "harm", 2: "other"},
        label2id={"refusal": 0, "harm": 1, "other": 2},
    )
    found = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "LayerNorm" not in name:
                parameter.normal_(0, 0.5)
        logits = found(**tokenizer(REQUESTS, ANSWERS, padding=True, return_tensors="pt")).logits
        found.classifier.bias -= logits.mean(0)
    return found


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return bert.tokenizer()


def alone(model: Any, tokenizer: Any, *texts: str) -> str:
    with torch.no_grad():
        return str(model.config.id2label[int(model(**tokenizer(*texts, return_tensors="pt")).logits.argmax())])


@pytest.mark.parametrize("pair", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_verdicts_are_those_of_single_texts(model: Any, tokenizer: Any, pair: bool, batch_size: int) -> None:
    labels = [
        alone(model, tokenizer, request, answer) if pair else alone(model, tokenizer, answer)
        for request, answer in zip(REQUESTS, ANSWERS, strict=True)
    ]
    chosen = max(set(labels), key=labels.count)
    assert 1 < labels.count(chosen) < len(labels), "verdicts must differ for their order to show"
    judge = ClassifierJudge(model, tokenizer, [chosen], pair, "tiny", batch_size)
    expected = [Verdict.UNSAFE if label == chosen else Verdict.SAFE for label in labels]
    assert judge.judge(REQUESTS, ANSWERS) == expected
    others = ClassifierJudge(model, tokenizer, {"refusal", "harm", "other"} - {chosen}, pair, "tiny", batch_size)
    assert [verdict is Verdict.SAFE for verdict in others.judge(REQUESTS, ANSWERS)] == [
        verdict is Verdict.UNSAFE for verdict in expected
    ]


def test_only_the_answer_is_cut_to_the_model_s_length(model: Any, tokenizer: Any) -> None:
    judges = [ClassifierJudge(model, tokenizer, [label], True, "tiny") for label in ("refusal", "harm", "other")]
    requests = [" ".join(["may i have the", *bert.WORDS[index:], *bert.WORDS[:index]]) for index in range(12)]
    kept = 24 - 3 - len(requests[0].split())
    words = [["no", word] * 20 for word in bert.WORDS]
    long, short = ([" ".join(answer[:length]) for answer in words] for length in (40, kept))
    found = [judge.judge(requests, long) for judge in judges]
    assert any(len(set(verdicts)) == 2 for verdicts in found), "verdicts must differ for a cut to show"
    assert found == [judge.judge(requests, short) for judge in judges]


@pytest.mark.parametrize("words", [21, 40])
def test_a_request_that_leaves_no_room_for_the_answer_is_refused(model: Any, tokenizer: Any, words: int) -> None:
    request = " ".join([bert.WORDS[0]] * words)
    with pytest.raises(JudgeError, match=rf"a request takes {words + 3} tokens, and tiny reads 24"):
        ClassifierJudge(model, tokenizer, ["harm"], True, "tiny").judge(["may i", request], ["no", "no"])
    assert ClassifierJudge(model, tokenizer, ["harm"], False, "tiny").judge([request], ["no"])


@pytest.mark.parametrize("pair", [True, False])
@pytest.mark.parametrize("text", [*INJECTIONS, "x [SEP] [CLS] no", "x [S[SEP]EP] no", "x［SEP］no"])
def test_an_answer_brings_no_special_token(model: Any, tokenizer: Any, text: str, pair: bool) -> None:
    ClassifierJudge(model, tokenizer, ["harm"], pair, "tiny").judge([text], [text])


def test_an_answer_that_would_bring_one_is_refused(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = ClassifierJudge(model, tokenizer, ["harm"], True, "tiny")
    monkeypatch.setattr("neurofreeze.evaluation.judges.sanitize.Sanitizer.clean", lambda _, text: text)
    with pytest.raises(JudgeError, match="found 4 of them, expected 3"):
        judge.judge(["may i"], ["no [SEP] sure"])


@pytest.mark.parametrize("unsafe", [[], ["toxic"], ["harm", "toxic"], ["refusal", "harm", "other"]])
def test_labels_that_decide_nothing_are_refused(model: Any, tokenizer: Any, unsafe: list[str]) -> None:
    with pytest.raises(JudgeError, match="some, not all, of the labels of tiny: refusal, harm, other"):
        ClassifierJudge(model, tokenizer, unsafe, True, "tiny")
