"""Conversations as token ids for the model, and as text for filters."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from neurofreeze.serving.errors import ApiError
from neurofreeze.serving.schemas import Message


class Prompts:
    """The chat template of one tokenizer, of which it keeps a copy: the original is used by another thread.

    Args:
        tokenizer: with a chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)
        self._lock = threading.Lock()

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids up to where the answer begins.

        Raises:
            ApiError: 400, if the model's template has no place for such a conversation.
        """
        turns = [{"role": _role(message), "content": message.content} for message in messages]
        try:
            with self._lock:
                found = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
        except TemplateError:
            raise ApiError(
                400, "messages: the model's chat template has no place for these roles in this order", "invalid_value"
            ) from None
        return list(found["input_ids"])


def request_text(messages: Sequence[Message]) -> str:
    """What filters judge the answer to: the one request, or the conversation turn by turn."""
    asked = [message for message in messages if _role(message) != "system"]
    if [message.role for message in asked] == ["user"]:
        return asked[0].content
    return "\n".join(f"{_role(message)}: {message.content}" for message in messages)


def _role(message: Message) -> str:
    return "system" if message.role == "developer" else message.role
