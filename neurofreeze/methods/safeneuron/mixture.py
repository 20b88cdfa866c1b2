"""What SafeNeuron trains on: safety and helpfulness pairs in a given proportion."""

from __future__ import annotations

import random
from collections.abc import Sequence

from neurofreeze.data.preferences import Preference
from neurofreeze.errors import DataError


def mixture(pairs: Sequence[Preference], share: float, seed: int) -> list[Preference]:
    """The largest choice of `pairs` of which `share`, to the nearest pair, is about safety; in random order.

    Args:
        pairs: about safety and about helpfulness.
        share: of safety pairs, in (0, 1]; with 1 there are no others.
        seed: of the choice and the order.

    Raises:
        DataError: if there is no pair of a kind that is needed.
    """
    found = {about: [pair for pair in pairs if pair.about == about] for about in ("safety", "helpfulness")}
    shares = {"safety": share, "helpfulness": 1 - share}
    for about, own in found.items():
        if shares[about] and not own:
            raise DataError(
                f"data.preferences.{about} has no pairs, but method.safeneuron.safety_share={share} needs some"
            )
    total = min(len(found[about]) / wanted for about, wanted in shares.items() if wanted)
    rng = random.Random(seed)
    chosen = [pair for about, own in found.items() for pair in rng.sample(own, _count(total * shares[about], own))]
    rng.shuffle(chosen)
    return chosen


def _count(wanted: float, own: Sequence[Preference]) -> int:
    return min(len(own), round(wanted))
