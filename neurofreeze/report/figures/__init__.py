"""The report's figures as PNG bytes; one file a figure, none touches pyplot or other global state."""

from neurofreeze.report.figures.bars import rate_bars
from neurofreeze.report.figures.curves import loss_curves
from neurofreeze.report.figures.heat_map import ORDERED_UP_TO, heat_map
from neurofreeze.report.figures.ratios import ratio_curves
from neurofreeze.report.figures.shares import frozen_shares

__all__ = ["ORDERED_UP_TO", "frozen_shares", "heat_map", "loss_curves", "rate_bars", "ratio_curves"]
