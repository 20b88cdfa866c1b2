"""What training loses beside the loss on its own data: replay and anchor."""

from __future__ import annotations

from dataclasses import dataclass

from neurofreeze.config.checks import check


@dataclass
class ReplayConfig:
    """Learn a few answers of data.replay again and again, so that they are not forgotten."""

    weight: float = 0.0  # of their mean loss; 0: no replay
    rows: int = 1  # beside each micro-batch of all ranks

    def __post_init__(self) -> None:
        _check("replay", self.weight, self.rows)


@dataclass
class AnchorConfig:
    """Stay near the distribution of the starting model on the first tokens of its answers to data.replay."""

    weight: float = 0.0  # of the mean KL divergence; 0: no anchor
    rows: int = 1  # beside each micro-batch of all ranks
    tokens: int = 4  # of each answer

    def __post_init__(self) -> None:
        _check("anchor", self.weight, self.rows)
        check(self.tokens > 0, "anchor.tokens", self.tokens, "a positive number")


def _check(name: str, weight: float, rows: int) -> None:
    check(weight >= 0, f"{name}.weight", weight, "a number not below 0")
    check(rows > 0, f"{name}.rows", rows, "a positive number")
