"""Triggers by name: what tells that an answer is going wrong."""

from neurofreeze.guard.triggers.base import Trigger
from neurofreeze.guard.triggers.lif import LifTrigger
from neurofreeze.guard.triggers.neurons import NeuronTrigger
from neurofreeze.guard.triggers.probe import ProbeTrigger

TRIGGERS: dict[str, type[NeuronTrigger] | type[ProbeTrigger] | type[LifTrigger]] = {
    trigger.name: trigger for trigger in (NeuronTrigger, ProbeTrigger, LifTrigger)
}

__all__ = ["TRIGGERS", "LifTrigger", "NeuronTrigger", "ProbeTrigger", "Trigger"]
