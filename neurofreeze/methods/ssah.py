"""SSAH, the Superficial Safety Alignment Hypothesis (arXiv 2410.10862, ICLR 2026): four groups of neurons.

With I_S a neuron's score on safety data and I_U its score on utility data, every neuron is in exactly one group:
ESU, exclusive safety units, largest I_S - I_U; EUU, exclusive utility units, smallest I_S - I_U; RU, redundant units,
smallest I_S + I_U; CU, complex units, the rest. Fine-tuning then freezes ESU and the top of CU, or all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from neurofreeze.errors import ConfigError
from neurofreeze.mask import MaskConfig, NeuronMask, check_fraction
from neurofreeze.neurons import NeuronMap
from neurofreeze.strategies.scores import NeuronScores, kinds, split

RU, EUU, CU, ESU = range(4)
GROUPS = ("RU", "EUU", "CU", "ESU")
Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Ratios:
    """Shares of all neurons; complex units are what is left.

    The paper finds them by pruning, as `ratio_search` does, and reports ESU near 1.3 % and ESU with all CU near 72 %
    for Llama-2-7B-Chat.
    """

    exclusive_safety: float = 0.015
    exclusive_utility: float = 0.14
    redundant: float = 0.14

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value < 1:
                raise ConfigError(f"method.ratios.{name} is {value}; expected a number in [0, 1)")
        if sum(asdict(self).values()) >= 1:
            raise ConfigError(f"method.ratios add up to {sum(asdict(self).values()):.3f}; expected less than 1")


@dataclass(frozen=True, eq=False)
class Groups:
    """Every neuron's group: site name -> uint8 [neurons], a code among RU, EUU, CU, ESU; and the ratios asked for."""

    neuron_map: NeuronMap
    codes: Mapping[str, Codes]
    ratios: Ratios

    def mask(self, code: int) -> NeuronMask:
        """The neurons of one group."""
        bits = {name: codes == code for name, codes in self.codes.items()}
        strategy = {"name": "ssah", "group": GROUPS[code]}
        return NeuronMask(bits, MaskConfig.of(self.neuron_map, strategy=strategy))


def group(safety: NeuronScores, utility: NeuronScores, ratios: Ratios) -> Groups:
    """Assign every neuron to a group, each kind of neuron separately: ESU first, then EUU, then RU.

    A neuron that would fall into two groups (little used by either set, yet more by one) goes to the earlier one.
    """
    codes: dict[str, Codes] = {}
    for names in kinds(safety.neuron_map).values():
        difference = safety.joined(names) - utility.joined(names)
        total = safety.joined(names) + utility.joined(names)
        found = np.full(len(total), CU, dtype=np.uint8)
        for code, ratio, badness in (
            (ESU, ratios.exclusive_safety, -difference),
            (EUU, ratios.exclusive_utility, difference),
            (RU, ratios.redundant, total),
        ):
            free = np.flatnonzero(found == CU)
            order = free[np.argsort(badness[free], kind="stable")]
            found[order[: round(ratio * len(total))]] = code
        codes |= split(found, names, safety.neuron_map)
    return Groups(safety.neuron_map, codes, ratios)


def freeze_mask(groups: Groups, safety: NeuronScores, utility: NeuronScores, fraction: float) -> NeuronMask:
    """ESU and, up to `fraction` of all neurons of each kind, the complex units that matter most for safety.

    "Top" is by I_S, which the paper does not define further. Where the fraction is below ESU's share, ESU is cut to it
    by I_S - I_U.

    Raises:
        MaskError: if fraction is not in (0, 1].
        ConfigError: if ESU and CU together are fewer than asked for.
    """
    check_fraction(fraction)

    def wanted(kind: str, codes: Codes) -> int:
        count, held = round(fraction * len(codes)), int(np.isin(codes, (ESU, CU)).sum())
        if count > held:
            raise ConfigError(
                f"fraction {fraction} asks for {count:,} {kind} neurons, but ESU and CU hold {held:,}; "
                "lower the fraction, or the ratios of EUU and RU"
            )
        return count

    return _first(groups, safety, utility, wanted, {"fraction": fraction})


def freeze_top_complex(groups: Groups, safety: NeuronScores, utility: NeuronScores, top: float) -> NeuronMask:
    """The paper's row (i): ESU, and of CU the neurons with the largest I_S, `top` of all neurons of each kind.

    The paper's 6 % are of all neurons: with ESU they make its 7.5 %.

    Raises:
        MaskError: if top is not in (0, 1].
        ConfigError: if CU holds fewer than asked for.
    """
    check_fraction(top)

    def wanted(kind: str, codes: Codes) -> int:
        count, held = round(top * len(codes)), int((codes == CU).sum())
        if count > held:
            raise ConfigError(
                f"method.top_cu {top} asks for {count:,} {kind} neurons of CU, which holds {held:,}; lower it, or take "
                "all with method.freeze=esu_all_cu"
            )
        return int((codes == ESU).sum()) + count

    return _first(groups, safety, utility, wanted, {"freeze": "esu_top_cu", "top_cu": top})


def freeze_all_complex(groups: Groups, safety: NeuronScores, utility: NeuronScores) -> NeuronMask:
    """The paper's row (ii): ESU and all of CU, that is all but EUU and RU."""

    def wanted(_: str, codes: Codes) -> int:
        return int(np.isin(codes, (ESU, CU)).sum())

    return _first(groups, safety, utility, wanted, {"freeze": "esu_all_cu"})


def freeze_all_but(groups: Groups, safety: NeuronScores, code: int) -> NeuronMask:
    """Of all neurons one group trains, as RU do under the paper's alignment budget."""
    rule = {"method": "ssah", "freeze": f"all_but_{GROUPS[code].lower()}", "ratios": asdict(groups.ratios)}
    return (~groups.mask(code)).with_config(strategy={**safety.strategy, **rule})


def _first(
    groups: Groups,
    safety: NeuronScores,
    utility: NeuronScores,
    wanted: Callable[[str, Codes], int],
    rule: dict[str, Any],
) -> NeuronMask:
    """Of each kind as many as `wanted` says: first ESU by I_S - I_U, then CU by I_S."""
    neuron_map = groups.neuron_map
    bits: dict[str, npt.NDArray[np.bool_]] = {}
    for kind, names in kinds(neuron_map).items():
        codes = np.concatenate([groups.codes[name] for name in names])
        difference = safety.joined(names) - utility.joined(names)
        exclusive = np.flatnonzero(codes == ESU)
        complex_ = np.flatnonzero(codes == CU)
        order = np.concatenate(
            [
                exclusive[np.argsort(-difference[exclusive], kind="stable")],
                complex_[np.argsort(-safety.joined(names)[complex_], kind="stable")],
            ]
        )
        chosen = np.zeros(len(codes), dtype=bool)
        chosen[order[: wanted(kind, codes)]] = True
        bits |= split(chosen, names, neuron_map)
    strategy = {**safety.strategy, "method": "ssah", **rule, "ratios": asdict(groups.ratios)}
    return NeuronMask(bits, MaskConfig.of(neuron_map, strategy=strategy), (safety - utility).values)
