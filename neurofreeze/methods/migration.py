"""Which neurons are in another of SSAH's groups after fine-tuning than before (arXiv 2410.10862, migration analysis).

Before and after are grouped by the same calibration sets and ratios, so each group holds as many neurons in both: what
enters a group is as much as leaves it. A neuron may change group without a bit of its own weights changing, since what
flows into it comes from others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from neurofreeze.methods.ssah import GROUPS, Codes

Chosen = Mapping[str, npt.NDArray[np.bool_]]


@dataclass(frozen=True)
class Transitions:
    """How many neurons went from one group to another.

    Attributes:
        of: which neurons, in words.
        counts: [from][to], in the order of GROUPS.
    """

    of: str
    counts: list[list[int]]

    @classmethod
    def between(
        cls, of: str, before: Mapping[str, Codes], after: Mapping[str, Codes], chosen: Chosen | None = None
    ) -> Transitions:
        """Count them.

        Args:
            of: which neurons, in words.
            before: site name -> the codes of its neurons' groups.
            after: the same after fine-tuning.
            chosen: site name -> bool [neurons], those to count; None for all.
        """
        counts = np.zeros((len(GROUPS), len(GROUPS)), dtype=np.int64)
        for site, old in before.items():
            counted = slice(None) if chosen is None else chosen[site]
            np.add.at(counts, (old[counted], after[site][counted]), 1)
        return cls(of, counts.tolist())

    @property
    def total(self) -> int:
        """Neurons counted."""
        return sum(map(sum, self.counts))

    @property
    def moved(self) -> int:
        """Neurons in another group than before."""
        return self.total - sum(self.counts[code][code] for code in range(len(GROUPS)))

    def __str__(self) -> str:
        if not self.total:
            return f"{self.of}: none"
        return (
            f"{self.of}: {self.moved:,} of {self.total:,} moved ({self.moved / self.total:.1%}, by chance "
            f"{self.by_chance:.1%})"
        )

    @property
    def by_chance(self) -> float:
        """Share that would be in another group if groups before and after had nothing to do with each other."""
        counts = np.array(self.counts, dtype=np.float64)
        return 1 - float(counts.sum(1) @ counts.sum(0)) / max(counts.sum() ** 2, 1)
