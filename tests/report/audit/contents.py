"""An audit's content made by hand: pruning at two sizes beside random neurons."""

from __future__ import annotations

from neurofreeze.guard.audit.changes import changes
from neurofreeze.guard.audit.verdict import verdict
from neurofreeze.report.audit.content import AuditContent, Start
from tests.guard.audit.readings import reading, state


def content() -> AuditContent:
    original = reading()
    states = [
        state("top 1 %", series="highest scores", x=0.01, neurons=461, control="random 1 %"),
        state("random 1 %", series="random 0", x=0.01, neurons=461),
        state("top 10 %", series="highest scores", x=0.1, neurons=4610, control="random 10 %"),
        state("random 10 %", series="random 0", x=0.1, neurons=4610),
    ]
    readings = {
        "top 1 %": reading(9, 3.0, kl=0.3),
        "random 1 %": reading(18, 5.9, kl=0.01),
        "top 10 %": reading(0, -4.0, kl=2.0, garbage=20, loss=4.0),
        "random 10 %": reading(17, 5.0, kl=0.2),
    }
    found = changes(original, states, readings, 0.5)
    return AuditContent(
        title="NeuroFreeze audit: prune, a|b <mask>",
        model="model",
        model_source="local folder",
        intervention="prune, mask",
        phrase_list="strict-opening v1",
        axis="% of the neurons of each kind",
        start=Start.of(original),
        changes=found,
        verdict=verdict(original, found, 0.5),
        command="neurofreeze audit intervention=prune mask=mask",
        settings="intervention: prune\n",
        version="0",
        created="2026-01-01 00:00 UTC",
    )
