"""Colours distinct under colour blindness (Okabe and Ito 2008); saturated is frozen, pale is not."""

from __future__ import annotations

from collections.abc import Iterable

from neurofreeze.report.content import Arm

INK, MUTED, GRID = "#1f2933", "#52606d", "#d9dee4"

FROZEN = {"ESU": "#d55e00", "CU": "#8e3a80", "EUU": "#00795a", "RU": "#3e4c59"}
PALE = {"ESU": "#f9d9bf", "CU": "#ecd6e8", "EUU": "#c9e9df", "RU": "#e8ebee"}
KINDS = {"mlp": "#0072b2", "attention": "#e69f00"}

_ARMS = {"aligned": "#52606d", "none": "#d55e00", "random": "#e69f00", "safety": "#0072b2"}
_OTHERS = ("#009e73", "#cc79a7", "#56b4e9", "#8e3a80", "#3e4c59")


def arm_colours(arms: Iterable[Arm]) -> dict[str, str]:
    """Arm name -> colour; the usual arms look the same in every report."""
    return colours(arm.name for arm in arms)


def colours(names: Iterable[str]) -> dict[str, str]:
    """Of arms by their names."""
    found = list(names)
    others = [name for name in found if name not in _ARMS]
    return {name: _ARMS.get(name) or _OTHERS[others.index(name) % len(_OTHERS)] for name in found}
