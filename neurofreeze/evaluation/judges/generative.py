"""Judges that say their verdict: guard models through their chat template, classifiers through a prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from neurofreeze.errors import JudgeError
from neurofreeze.evaluation.generation import continuations
from neurofreeze.evaluation.judges.base import Verdict, first_word
from neurofreeze.evaluation.judges.sanitize import Sanitizer, require_same_structure, special_texts

BEHAVIOR, GENERATION = "{behavior}", "{generation}"  # as in the prompt on the HarmBench classifiers' model cards
_TOKENS = 6  # blank lines and the pieces of one word
_SLOT = re.compile("|".join(map(re.escape, (BEHAVIOR, GENERATION))))
_REQUEST, _ANSWER = "<request>", "<answer>"  # stand in for what is judged

Render = Callable[[str, str], str]  # request, answer -> the judge's prompt


class GenerativeJudge:
    """A causal language model whose reply opens with its verdict.

    Args:
        model: in evaluation mode.
        tokenizer: its own, with a padding token.
        render: puts a request and an answer into the judge's prompt.
        verdicts: what the first word of a reply means, in lower case.
        label: name for tables.
        batch_size: prompts at a time.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        render: Render,
        verdicts: dict[str, Verdict],
        label: str,
        batch_size: int = 8,
    ) -> None:
        self.model, self.tokenizer, self.render, self.verdicts = model, tokenizer, render, verdicts
        self.label, self.batch_size = label, batch_size
        prompt = render(_REQUEST, _ANSWER).replace(_REQUEST, "\n").replace(_ANSWER, "\n")
        self._sanitizer = Sanitizer(prompt, special_texts(tokenizer))
        self._structure = self._ids("x", "x")

    def judge(self, requests: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        """A verdict for each request and its answer."""
        prompts = [self._prompt(request, answer) for request, answer in zip(requests, answers, strict=True)]
        limit = getattr(self.model.config, "max_position_embeddings", None)
        longest = max(map(len, prompts), default=0) + _TOKENS
        if limit is not None and longest > limit:
            raise JudgeError(
                f"a prompt of {self.label} has {longest} tokens with the reply, and it reads {limit}; "
                "lower judge.tokens"
            )
        replies = continuations(self.model, self.tokenizer, prompts, max_new_tokens=_TOKENS, batch_size=self.batch_size)
        return [first_word(reply, self.verdicts) for reply in replies]

    def _prompt(self, request: str, answer: str) -> list[int]:
        clean = self._sanitizer.clean
        ids = self._ids(clean(request), clean(answer))
        require_same_structure(self.tokenizer, ids, self._structure, self.label)
        return ids

    def _ids(self, request: str, answer: str) -> list[int]:
        text = self.render(request, answer)
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        begin = self.tokenizer.bos_token_id
        # A chat template writes the beginning token itself; a plain prompt does not.
        return ids if begin is None or begin in ids[:1] else [begin, *ids]


def through_template(tokenizer: Any, label: str) -> Render:
    """A guard model's own chat template, over a request and the answer to it.

    Raises:
        JudgeError: if there is no template, or it leaves out one of the two.
    """

    def render(request: str, answer: str, parts: bool = False) -> str:
        turns = [("user", request), ("assistant", answer)]
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}] if parts else text} for role, text in turns
        ]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    if tokenizer.chat_template is None:
        raise JudgeError(f"{label} has no chat template; expected a guard model that brings its prompt as one")
    # Llama Guard 3 1B takes texts in parts only, as its larger relative with images does.
    for parts in (False, True):
        rendered = render(_REQUEST, _ANSWER, parts)
        if _REQUEST in rendered and _ANSWER in rendered:
            return partial(render, parts=parts)
    raise JudgeError(f"the chat template of {label} does not show a request and its answer; expected a guard model's")


def through_prompt(path: Path) -> Render:
    """A classifier's prompt from a text file, with {behavior} and {generation} in it.

    Raises:
        JudgeError: if the file is missing or lacks one of the two.
    """
    try:
        prompt = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise JudgeError(f"judge.prompt: {path} cannot be read: {error.strerror}") from error
    if sorted(_SLOT.findall(prompt)) != sorted(slots := {BEHAVIOR: 0, GENERATION: 1}):
        raise JudgeError(f"{path} must have {BEHAVIOR} and {GENERATION} once each: the prompt on the model's card")
    return lambda request, answer: _SLOT.sub(lambda slot: (request, answer)[slots[slot[0]]], prompt)
