"""The page of an audit: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from neurofreeze.report.audit.content import AuditContent
from neurofreeze.report.figures.divergence import divergence_curves
from neurofreeze.report.figures.erosion import margin_erosion
from neurofreeze.report.html import Picture
from neurofreeze.report.templates import render


def page(content: AuditContent, head: Sequence[str], rows: Sequence[Sequence[tuple[str, str]]], notes: str) -> str:
    """The page as text; each cell is a number and its interval, or nothing."""
    return render(
        "audit.html",
        content=content,
        head=head,
        rows=rows,
        notes=notes,
        bad=any(change.judgement in ("erodes", "mixed") for change in content.changes),
        erosion=_erosion(content),
        divergence=_divergence(content),
    )


def _erosion(content: AuditContent) -> Picture:
    told = "; ".join(f"{change.label} {change.margin.value:.2f}" for change in content.changes)
    picture = margin_erosion(content.start.margin, content.changes, content.axis)
    return Picture(picture, f"Refusal margin: original {content.start.margin.value:.2f}; {told}.")


def _divergence(content: AuditContent) -> Picture | None:
    found = [change for change in content.changes if any(mean.value for mean in change.kl_harmful + change.kl_harmless)]
    if not found:
        return None
    told = "; ".join(
        f"{change.label}, first token, harmful {change.kl_harmful[0].value:.3f}, harmless "
        f"{change.kl_harmless[0].value:.3f}"
        for change in found
        if change.kl_harmful and change.kl_harmless
    )
    return Picture(divergence_curves(found), f"KL from the original by position: {told}.")
