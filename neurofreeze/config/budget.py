"""The settings of method=budget."""

from __future__ import annotations

from dataclasses import dataclass, field

from neurofreeze.config.checks import check


@dataclass
class BudgetRatesConfig:
    """Of the arms of method=budget, in place of training.learning_rate."""

    budget: float = 5e-5
    random: float = 5e-5
    full: float = 5e-5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check(value > 0, f"method.budget.learning_rates.{name}", value, "a number above 0")


@dataclass
class BudgetConfig:
    """SSAH's alignment budget: refusals are taught by training redundant units only."""

    ratio: float = 0.2  # of redundant units, in place of method.ratios.redundant
    learning_rates: BudgetRatesConfig = field(default_factory=BudgetRatesConfig)

    def __post_init__(self) -> None:
        check(0 < self.ratio < 1, "method.budget.ratio", self.ratio, "a number between 0 and 1")
