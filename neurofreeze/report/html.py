"""The HTML report: one file that needs nothing else."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from neurofreeze.evaluation.group_pruning import IN_PAPER
from neurofreeze.files import write_atomically
from neurofreeze.methods.ratio_search import Curve
from neurofreeze.report import figures
from neurofreeze.report.content import GROUPS, Content, Site
from neurofreeze.report.formatting import fraction
from neurofreeze.report.layers import Count, by_group, by_layer
from neurofreeze.report.palette import FROZEN, PALE, arm_colours
from neurofreeze.report.templates import render
from neurofreeze.report.verdict import unequal_steps, verdict
from neurofreeze.strategies.stability import mean

MEANINGS = {
    "ESU": "exclusive safety units",
    "CU": "complex units, both safety and utility",
    "EUU": "exclusive utility units",
    "RU": "redundant units",
}


@dataclass(frozen=True)
class Picture:
    """A figure as the template shows it."""

    png: bytes
    alt: str

    @property
    def uri(self) -> str:
        """The picture itself, as an address that needs no request."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def write_report(content: Content, path: Path) -> Path:
    """Write the report to `path`, whole or not at all, and return `path`."""
    write_atomically(path, _html(content).encode())
    return path


def _html(content: Content) -> str:
    grouped = [site for site in content.sites if len(site.groups)]
    layers = by_layer(content.sites)
    return render(
        "report.html",
        content=content,
        verdict=verdict(content),
        unequal=bool(unequal_steps(content.arms)),
        changed=any(arm.verified_changed for arm in content.arms),
        trained=[arm for arm in content.arms if arm.losses or arm.seconds],
        frozen_arms=[arm for arm in content.arms if arm.frozen_elements or arm.verified_changed is not None],
        labels={arm.name: arm.label for arm in content.arms},
        colours=arm_colours(content.arms),
        safety=_safety(content),
        curves=_curves(content),
        heat_maps=_heat_maps(grouped),
        shares=_shares(layers),
        layers=layers,
        groups=by_group(grouped),
        ratios=_ratios(content.search),
        stability=mean(content.overlaps) if content.overlaps else None,
        meanings=MEANINGS,
        in_paper=IN_PAPER,
        groups_by_code=GROUPS,
        frozen_colours=FROZEN,
        pale_colours=PALE,
        ordered_up_to=figures.ORDERED_UP_TO,
    )


def _safety(content: Content) -> list[Picture]:
    pictures = []
    for title, attribute in (
        ("Refusals of harmful requests", "refusals"),
        ("Refusals of harmless look-alikes", "over_refusals"),
    ):
        rates = {arm.name: getattr(arm.measurements, attribute) for arm in content.arms}
        if rates:
            told = "; ".join(f"{arm.label} {fraction(rates[arm.name])}" for arm in content.arms)
            pictures.append(Picture(figures.rate_bars(title, content.arms, rates), f"{title}: {told}."))
    return pictures


def _ratios(curves: list[Curve]) -> list[Picture]:
    if not curves:
        return []
    taken = ", ".join(f"{curve.group} {100 * curve.chosen:g} %" for curve in curves)
    return [
        Picture(
            figures.ratio_curves(title, curves, attribute, tolerance, unit),
            f"{title}, by group and ratio; the ratios taken are {taken}. The table below has the numbers.",
        )
        for title, attribute, tolerance, unit in (
            ("Refusal margin falls by", "margin_drop", curves[0].tolerance.margin, "nats"),
            ("Utility loss rises by", "loss_rise", curves[0].tolerance.loss, "nats per token"),
        )
    ]


def _shares(layers: dict[int, dict[str, Count]]) -> Picture | None:
    if not layers:
        return None
    return Picture(
        figures.frozen_shares(layers),
        "Share of each layer's neurons that is frozen; the table below has the counts.",
    )


def _curves(content: Content) -> Picture | None:
    arms = [arm for arm in content.arms if arm.losses]
    if not arms:
        return None
    told = "; ".join(f"{arm.label} from {arm.losses[0][1]:.2f} to {arm.losses[-1][1]:.2f}" for arm in arms)
    return Picture(figures.loss_curves(content.arms), f"Training loss: {told}.")


def _heat_maps(sites: list[Site]) -> list[Picture]:
    pictures = []
    for kind, title, width in (("mlp", "MLP neurons", 6.6), ("attention", "Attention neurons", 3.3)):
        rows = sorted((site for site in sites if site.kind == kind), key=lambda site: site.layer)
        if rows:
            told = f"{title} of {len(rows)} blocks by group and frozen or not; counts in the table above."
            pictures.append(Picture(figures.heat_map(title, rows, width), told))
    return pictures
