"""What the page of an audit shows, already measured."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np

from neurofreeze._version import __version__
from neurofreeze.evaluation.phrases import phrase_list
from neurofreeze.evaluation.statistics import Mean, Rate
from neurofreeze.guard.audit.changes import Change
from neurofreeze.guard.audit.reading import Reading
from neurofreeze.guard.audit.run import Audit
from neurofreeze.guard.audit.verdict import verdict
from neurofreeze.tracking.redaction import redact, redact_yaml


@dataclass(frozen=True)
class Start:
    """The original."""

    refusals: Rate
    over_refusals: Rate
    degenerate: Rate
    margin: Mean
    loss: Mean
    probe_accuracy: (
        float  # of harmful requests and look-alikes that its probe tells apart, both kinds weighing the same
    )

    @classmethod
    def of(cls, original: Reading) -> Start:
        """Counts and means."""
        found = original.outcomes
        harmful, harmless = np.array(original.probe_harmful) > 0, np.array(original.probe_harmless) < 0
        return cls(
            Rate.of(found.refused),
            Rate.of(found.over_refused),
            Rate.of(found.degenerate),
            Mean.of(found.margins),
            Mean.of(found.general_losses),
            float(harmful.mean() + harmless.mean()) / 2,
        )


@dataclass(frozen=True)
class AuditContent:
    """Everything that the page, the Markdown and the JSON file show."""

    title: str
    model: str
    model_source: str
    intervention: str
    phrase_list: str
    axis: str  # what `Change.x` is
    start: Start
    changes: list[Change]
    verdict: list[str]
    command: str
    settings: str
    version: str
    created: str

    @classmethod
    def of(cls, audit: Audit, original: Reading, found: list[Change], command: str, settings: str) -> AuditContent:
        """From what an audit measured; settings are shown without their secrets."""
        c = audit.config
        return cls(
            title=f"NeuroFreeze audit: {_named(audit)}",
            model=c.model,
            model_source=audit.source.origin,
            intervention=_named(audit),
            phrase_list=phrase_list(c.evaluation.phrases).label,
            axis=_AXES[c.steering.unit] if c.intervention == "steering" else "% of the neurons of each kind",
            start=Start.of(original),
            changes=found,
            verdict=verdict(original, found, c.tolerance),
            command=redact(command),
            settings=redact_yaml(settings),
            version=__version__,
            created=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        )


_AXES = {"norm": "strength, in mean hidden norms of the layer", "raw": "strength"}


def _named(audit: Audit) -> str:
    c = audit.config
    if c.intervention == "steering":
        if c.steering.vector:
            return f"steering, {c.steering.vector}"
        mixed = "" if c.steering.mix == "none" else f", BIND ({c.steering.mix})"
        return f"steering, {c.steering.recipe.upper()}{mixed}"
    folder = {"checkpoint": c.tuned, "adapter": c.adapter, "gate": c.gate}.get(c.intervention, c.mask)
    return f"{c.intervention}, {folder}"
