"""Asking the model about a conversation, whose words must not speak with the voice of the question.

What users or the answer say is cleaned of markup and special tokens, and framed by lines that carry a code made from
it: a text cannot hold its own digest, so it cannot close its own frame. This keeps the structure of the question; it
cannot keep a model from being persuaded by plain words.
"""

from __future__ import annotations

import hashlib
from typing import Any

from neurofreeze.data.batches import prompt_ids
from neurofreeze.data.examples import Example
from neurofreeze.errors import JudgeError
from neurofreeze.evaluation.judges.sanitize import Sanitizer, require_same_structure, special_texts
from neurofreeze.guard.reactions.base import Call

_FRAME = "--- {what} {code}\n{text}\n--- end {code}"


class Question:
    """A fixed question about given material.

    Args:
        tokenizer: of the model that is asked.
        before: what it is told before the material.
        after: what it is asked after it.
    """

    def __init__(self, tokenizer: Any, before: str, after: str) -> None:
        self.tokenizer, self.before, self.after = tokenizer, before, after
        self.sanitizer = Sanitizer(f"{before}\n{after}", special_texts(tokenizer))

    def ids(self, **material: str) -> list[int]:
        """Token ids of the question, up to where the reply begins.

        Raises:
            JudgeError: if the material would bring special tokens into it.
        """
        found, plain = self._ids(self.text(**material)), self._ids(self.text(**dict.fromkeys(material, "x")))
        require_same_structure(self.tokenizer, found, plain, "self-reflection")
        return found

    def text(self, **material: str) -> str:
        """What the model reads in the user's place."""
        clean = {what: self.sanitizer.clean(text) for what, text in material.items()}
        code = hashlib.sha256("\n".join(clean.values()).encode()).hexdigest()[:16]
        frames = [_FRAME.format(what=what, code=code, text=text) for what, text in clean.items()]
        return "\n\n".join([self.before, *frames, self.after])

    def ask(self, call: Call, tokens: int, **material: str) -> str | None:
        """The reply, of up to `tokens` tokens; None if the question cannot be asked safely or is too long."""
        try:
            ids = self.ids(**material)
        except JudgeError:
            return None
        if call.context is not None and len(ids) + tokens > call.context:
            return None
        return call.text(call.say(ids, tokens))

    def _ids(self, text: str) -> list[int]:
        return prompt_ids(self.tokenizer, Example.of(text))
