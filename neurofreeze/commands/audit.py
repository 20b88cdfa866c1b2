"""neurofreeze audit: how much safety is left of a model under an intervention, against the model without it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from neurofreeze.commands.settings import compose
from neurofreeze.config.audit import AuditConfig
from neurofreeze.console import console, quiet_transformers, say


def main(overrides: Sequence[str]) -> int:
    """Measure what is not complete, print the table and the verdict, and write audit.html, audit.md and audit.json."""
    command = shlex.join(["neurofreeze", "audit", *overrides])
    return compose("audit", overrides, partial(_audit, command=command), "audit")


def _audit(config: AuditConfig, folder: Path, settings: str, *, command: str) -> int:
    from neurofreeze.guard.audit.run import Audit
    from neurofreeze.report.audit.content import AuditContent
    from neurofreeze.report.audit.output import write
    from neurofreeze.report.audit.terminal import table

    quiet_transformers()
    audit = Audit(config, folder)
    original, found = audit.run()
    content = AuditContent.of(audit, original, found, command, settings)
    console.print(table(content))
    for sentence in content.verdict:
        say(sentence)
    say(f"written: {', '.join(map(str, write(content, folder)))}")
    return 0
