"""Numbers and values as a reader sees them; the HTML report and the terminal share these."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from neurofreeze.evaluation.statistics import Mean, Rate

NO_INTERVAL = "no interval"


def fraction(rate: Rate) -> str:
    """'58/64'."""
    return f"{rate.count:,}/{rate.total:,}"


def rate_interval(rate: Rate) -> str:
    """'81-96 %', or 'no interval' if a bound is not a number."""
    if not _known(rate):
        return NO_INTERVAL
    return f"{100 * rate.low:.0f}-{100 * rate.high:.0f} %"


def mean_interval(mean: Mean, digits: int = 2) -> str:
    """'1.20-1.27', '-0.3 to 0.4' below zero, or 'no interval' if a bound is not a number."""
    if not _known(mean):
        return NO_INTERVAL
    return f"{mean.low:.{digits}f}{' to ' if mean.low < 0 else '-'}{mean.high:.{digits}f}"


def half_width(mean: Mean, digits: int = 2) -> str:
    """'±0.04', the t interval's longer half, or 'no interval' if a bound is not a number."""
    if not _known(mean):
        return NO_INTERVAL
    return f"±{max(mean.value - mean.low, mean.high - mean.value):.{digits}f}"


def share(part: int, whole: int) -> str:
    """`part` of `whole` in percent with as many digits as it takes not to print 0 for something."""
    if not whole:
        return "-"
    percent = 100 * part / whole
    if 0 < percent < 0.01:
        return "< 0.01 %"
    digits = 0 if percent >= 10 or percent == 0 else 1 if percent >= 1 else 2
    return f"{percent:.{digits}f} %"


def percent(ratio: float) -> str:
    """'1.5 %', with as few digits as the ratio has."""
    return f"{100 * ratio:g} %"


def share_of_one(ratio: float | None) -> str:
    """'15 %' of 0.15, or '-' where there is none or nothing."""
    return f"{100 * ratio:.3g} %" if ratio else "-"


def percent_range(low: float, high: float) -> str:
    """'20-35 %' of two ratios."""
    return f"{100 * low:.0f}-{100 * high:.0f} %"


def plain(value: float | None) -> str:
    """'1.23', or '-' where it was not measured."""
    return "-" if value is None else f"{value:.2f}"


def p_value(p: float) -> str:
    """'p = 0.035', 'p < 0.001'."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def number(count: int, noun: str) -> str:
    """'1 prompt', '12 prompts'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(items: Iterable[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    *head, last = items
    return f"{', '.join(head)} and {last}" if head else last


def duration(seconds: float) -> str:
    """'48 s', '12 min 5 s', '3 h 20 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def value(thing: Any) -> str:
    """A config value on one line: text as it is, containers as JSON."""
    return json.dumps(thing, default=str, ensure_ascii=False) if isinstance(thing, (dict, list, tuple)) else str(thing)


FILTERS = (
    fraction, rate_interval, mean_interval, share, share_of_one, percent, percent_range, plain, p_value, number,
    duration, value,
)  # fmt: skip


def _known(interval: Rate | Mean) -> bool:
    return math.isfinite(interval.low) and math.isfinite(interval.high)


def strict(value: Any) -> Any:
    """The value with null in place of numbers that JSON has not, such as the bounds of a single prompt's mean."""
    if isinstance(value, dict):
        return {key: strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [strict(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
