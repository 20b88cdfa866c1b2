"""Any sequence-classification model as a judge: of refusals, toxicity, harm."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from neurofreeze.errors import JudgeError
from neurofreeze.evaluation.judges.base import Verdict
from neurofreeze.evaluation.judges.sanitize import Sanitizer, require_same_structure, special_texts


class ClassifierJudge:
    """The most likely label decides.

    Args:
        model: a sequence-classification model in evaluation mode.
        tokenizer: its own, with a padding token.
        unsafe: labels of the model's config that mean unsafe.
        pair: read request and answer as a pair; otherwise the answer alone.
        label: name for tables.
        batch_size: texts at a time.

    Raises:
        JudgeError: if the model has no such label, or no other.
    """

    def __init__(
        self, model: Any, tokenizer: Any, unsafe: Collection[str], pair: bool, label: str, batch_size: int = 8
    ) -> None:
        self.model, self.tokenizer, self.pair, self.label, self.batch_size = model, tokenizer, pair, label, batch_size
        self._unsafe = unsafe_indices(model.config, unsafe, label)
        self._sanitizer = Sanitizer("", special_texts(tokenizer))
        self._structure = self._encode(["x"], ["x"])["input_ids"][0]

    @torch.inference_mode()
    def judge(self, requests: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        """A verdict for each request and its answer; what is past the model's length of the answer is not read.

        Raises:
            JudgeError: if a request leaves no room for an answer.
        """
        verdicts: list[Verdict] = []
        for begin in range(0, len(answers), self.batch_size):
            texts = [
                [self._sanitizer.clean(text) for text in side[begin : begin + self.batch_size]]
                for side in (requests, answers)
            ]
            encoded = self._encode(*texts)
            for ids in encoded["input_ids"]:
                require_same_structure(self.tokenizer, ids, self._structure, self.label)
            batch = self.tokenizer.pad(encoded, return_tensors="pt").to(self.model.device)
            chosen = self.model(**batch).logits.argmax(-1).tolist()
            verdicts += [Verdict.UNSAFE if index in self._unsafe else Verdict.SAFE for index in chosen]
        return verdicts

    def _encode(self, requests: list[str], answers: list[str]) -> Any:
        limits = (self.tokenizer.model_max_length, getattr(self.model.config, "max_position_embeddings", None))
        length = min(limit for limit in limits if limit is not None)
        if self.pair:
            asked = self.tokenizer(requests, add_special_tokens=False)["input_ids"]
            longest = max(map(len, asked)) + self.tokenizer.num_special_tokens_to_add(pair=True)
            if longest >= length:
                raise JudgeError(
                    f"a request takes {longest} tokens, and {self.label} reads {length}, so that nothing of the answer "
                    "is left; leave the request out, or judge answers alone with judge.pair=false"
                )
            return self.tokenizer(requests, answers, truncation="only_second", max_length=length)
        return self.tokenizer(answers, truncation=True, max_length=length)


def unsafe_indices(config: Any, unsafe: Collection[str], label: str) -> set[int]:
    """Which outputs of a model, by its config, are the labels that mean unsafe.

    Raises:
        JudgeError: if the model has no such label, or no other.
    """
    labels = {str(name): int(index) for index, name in config.id2label.items()}
    if not unsafe or not set(unsafe) < labels.keys():
        raise JudgeError(
            f"judge.unsafe is {list(unsafe)}; expected some, not all, of the labels of {label}: {', '.join(labels)}"
        )
    return {labels[name] for name in unsafe}
