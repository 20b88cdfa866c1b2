"""Anchor: the model stays near its starting point on the first tokens of its own answers.

Nearly all of what fine-tuning takes from refusals sits in the first tokens of an answer (Qi et al. 2025,
arXiv 2406.05946, who weigh the first tokens of the training data itself). Here the rows are prompts of data.replay
with the greedy opening that the starting model gave them, so that no answers need be known, and answers to
look-alikes are held as refusals are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load, save

from neurofreeze.config.objectives import AnchorConfig
from neurofreeze.console import stage
from neurofreeze.data.batches import pad, prompt_ids
from neurofreeze.data.examples import Example, digest
from neurofreeze.distributed import first_rank
from neurofreeze.errors import DataError
from neurofreeze.evaluation.generation import continuation_ids
from neurofreeze.models.load import load_model, load_tokenizer
from neurofreeze.training.objectives.base import Order, Row

_BATCH_SIZE = 16  # of the starting model's passes


@dataclass(frozen=True)
class Anchor:
    """KL(start || model), in nats, averaged over the opening's tokens and the rows.

    Args:
        config: weight, rows and tokens.
        examples: whose prompts are answered; answers are not looked at.
    """

    config: AnchorConfig
    examples: Sequence[Example]

    @property
    def identity(self) -> str:
        """Its settings and the digest of its prompts."""
        return f"anchor {asdict(self.config)} on {digest(self.examples)}"

    def prepare(self, base: Path, max_length: int, seed: int) -> AnchorTerms:
        """The starting model's openings and their distributions, from one rank, which holds the whole model meanwhile.

        Raises:
            DataError: if a prompt and its opening take more than `max_length` tokens.
        """
        found = load(first_rank(lambda: save(self._openings(base, max_length))))
        rows, references = [], []
        for index in range(len(self.examples)):
            ids, reference = found[f"ids.{index}"].tolist(), found[f"log_probs.{index}"]
            rows.append(Row(index, ids, len(ids) - len(reference)))
            references.append(reference)
        return AnchorTerms(self.config.weight, rows, references, Order(len(rows), self.config.rows, seed))

    def _openings(self, base: Path, max_length: int) -> dict[str, torch.Tensor]:
        model, tokenizer = load_model(base).eval(), load_tokenizer(base)
        prompts = [prompt_ids(tokenizer, example) for example in self.examples]
        with stage("anchor", 2 * -(-len(prompts) // _BATCH_SIZE)) as bar:
            openings = continuation_ids(
                model,
                tokenizer,
                prompts,
                max_new_tokens=self.config.tokens,
                batch_size=_BATCH_SIZE,
                progress=bar.advance,
            )
            rows = [(prompt + opening, len(prompt)) for prompt, opening in zip(prompts, openings, strict=True)]
            if (longest := max(len(ids) for ids, _ in rows)) > max_length:
                raise DataError(
                    f"a prompt of data.replay and the first {self.config.tokens} tokens of its answer take {longest} "
                    f"tokens, more than training.max_length={max_length}; raise it, or leave long prompts out"
                )
            found = {}
            with torch.no_grad():
                for batch in pad(rows, tokenizer.pad_token_id, _BATCH_SIZE):
                    batch = batch.to(model.device)
                    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
                    for index, row in zip(batch.indices, logits, strict=True):
                        ids, start = rows[index]
                        found[f"ids.{index}"] = torch.tensor(ids)
                        # In half precision: 4 tokens of 49,000 words take 0.4 MB a prompt.
                        log_probs = F.log_softmax(row[start - 1 : len(ids) - 1].float(), dim=-1)
                        found[f"log_probs.{index}"] = log_probs.half().cpu()
                    bar.advance()
        return found


@dataclass(frozen=True, eq=False)
class AnchorTerms:
    """An anchor at these openings: `references` are the start's log-probabilities, float16 [tokens, vocabulary]."""

    weight: float
    known: list[Row]
    references: list[torch.Tensor]
    order: Order
    name: str = "anchor_kl"

    def rows(self, micro_batch: int) -> list[Row]:
        """Those that run with one micro-batch, on all ranks together."""
        return [self.known[index] for index in self.order.of(micro_batch)]

    def loss(self, row: Row, logits: torch.Tensor) -> torch.Tensor:
        """KL(start || model) of the next token, mean over the opening's tokens, nats."""
        reference = self.references[row.example].to(logits.device, torch.float32)
        return F.kl_div(F.log_softmax(logits, dim=-1), reference, reduction="batchmean", log_target=True)
