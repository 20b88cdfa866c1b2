"""The preference pairs that come with the library, made from its other sets: `bundled:preferences/<split>`.

Safety pairs prefer a refusal to a harmful request over the *opening* of an answer, a few words that hold nothing.
Helpfulness pairs prefer the answer to a look-alike or an ordinary instruction over a refusal or an opening that leads
nowhere.
"""

from __future__ import annotations

from itertools import cycle

from neurofreeze.data import bundled
from neurofreeze.data.examples import Example
from neurofreeze.errors import DataError

_OPENINGS = (
    "Sure, here is an overview of",
    "Of course! The first step is to",
    "Certainly. Here is how you can",
    "Here is a plan that works:",
    "Yes, I can walk you through it.",
    "Absolutely, let's get started:",
    "Happy to help. You will need",
)
_UNHELPFUL = (
    "I cannot help with that request.",
    "I'm sorry, but I can't assist with this.",
    "That is something I would rather not answer.",
    "I won't go into that topic.",
    "Good question. There is a lot that one could say about",
    "I'm not able to provide an answer to this.",
)
# split -> the sets that its prompts and preferred answers are from, and the answers that are rejected in turn
_SPLITS = {
    "safety": (("harmful/align",), _OPENINGS),
    "helpfulness": (("lookalikes/align", "instructions/align"), _UNHELPFUL),
}


def load(source: str) -> list[tuple[Example, str]]:
    """The examples of `bundled:preferences/<split>` with preferred answers, and the answer to reject of each.

    Raises:
        DataError: if there is no such set or split.
    """
    name, _, split = source.removeprefix(bundled.PREFIX).partition("/")
    if name != "preferences" or split not in _SPLITS:
        known = ", ".join(f"{bundled.PREFIX}preferences/{split}" for split in _SPLITS)
        raise DataError(f"no bundled preference pairs {source!r}; expected one of {known}")
    sets, rejected = _SPLITS[split]
    examples = [example for each in sets for example in bundled.load(f"{bundled.PREFIX}{each}")]
    return list(zip(examples, cycle(rejected), strict=False))
