"""What hardening trains on: all refusals, and as many benign answers as make a given share of the whole."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from neurofreeze.data.examples import Example
from neurofreeze.errors import DataError


def mixture(
    examples: Sequence[Example], is_refusal: Callable[[str], bool], benign_share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """(refusals, benign answers) among examples; of the latter a random choice, or all if they are too few.

    Args:
        examples: prompts with answers.
        is_refusal: tells refusals from other answers.
        benign_share: of benign answers among all that are returned, in [0, 1).
        seed: of the choice.

    Raises:
        DataError: if no answer is a refusal, or a benign one is asked for and there is none.
    """
    refusals = [example for example in examples if is_refusal(str(example.response))]
    benign = [example for example in examples if not is_refusal(str(example.response))]
    if not refusals:
        raise DataError(f"none of the {len(examples)} answers of data.alignment is a refusal; NeST trains on refusals")
    if benign_share and not benign:
        raise DataError("data.alignment has refusals only; add benign answers to it or set method.nest.benign_share=0")
    wanted = min(len(benign), round(len(refusals) * benign_share / (1 - benign_share)))
    return refusals, random.Random(seed).sample(benign, wanted)
