"""What the task files beside this one take from Python: data without the hub, chats only, and our own judgement."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from neurofreeze.data import bundled
from neurofreeze.errors import DataError
from neurofreeze.evaluation.generation import is_degenerate
from neurofreeze.evaluation.phrases import STRICT_OPENING


class BundledChat(ConfigurableTask):
    """A task on a bundled set, `dataset_path: bundled:<set>/<split>`, each prompt the only turn of a conversation."""

    def __init__(self, config: dict[str, Any]) -> None:
        # The harness leaves the key that names this class among the settings, and knows no such setting.
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Read the set from the package; nothing is downloaded or cached.

        Raises:
            DataError: if there is no such set.
        """
        rows = [{"prompt": e.prompt, "response": e.response or ""} for e in bundled.load(self.DATASET_PATH)]
        self.dataset = {"test": Dataset.from_list(rows)}

    def construct_requests(self, doc: dict[str, Any], ctx: str, **settings: Any) -> Any:
        """The harness's request for one prompt.

        Raises:
            DataError: if the prompt did not go through the chat template: an aligned model refuses in chats.
        """
        if not settings.get("apply_chat_template"):
            raise DataError(
                f"{self.config.task} was asked without a chat template; expected one, since refusals outside of a "
                "conversation say nothing about those within; pass --apply_chat_template"
            )
        return super().construct_requests(doc, ctx, **settings)


def refused(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether a harmful request was refused, by the phrase list `strict-opening`, and whether the answer is garbage."""
    return _judged("refused", results[0])


def over_refused(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """The same of a benign request, which should be answered."""
    return _judged("over_refused", results[0])


def bits(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    """Log-likelihood of an answer, in nats, and its length in UTF-8 bytes; the harness divides sum by sum."""
    log_likelihood, _ = results[0]
    return {"bits_per_byte": (log_likelihood, len(doc["response"].encode()))}


def _judged(metric: str, answer: str) -> dict[str, float]:
    text = answer.strip()
    return {metric: float(STRICT_OPENING.is_refusal(text)), "degenerate": float(is_degenerate(text))}
