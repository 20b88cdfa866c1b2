"""Objectives: what training loses beside the loss on its own data, from rows that run with each micro-batch."""

from neurofreeze.training.objectives.anchor import Anchor
from neurofreeze.training.objectives.base import Objective, Row, Terms
from neurofreeze.training.objectives.joint import Joint
from neurofreeze.training.objectives.replay import Replay

__all__ = ["Anchor", "Joint", "Objective", "Replay", "Row", "Terms"]
