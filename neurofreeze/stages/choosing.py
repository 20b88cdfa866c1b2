"""Chooser: from calibration sets to the neurons to freeze, by a run's strategy and method."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

from neurofreeze.config.schema import Config
from neurofreeze.console import say, stage
from neurofreeze.data.examples import Example
from neurofreeze.errors import ConfigError
from neurofreeze.evaluation.pruning import Pruned, prune, steps
from neurofreeze.mask import NeuronMask
from neurofreeze.methods import ssah
from neurofreeze.methods.ratio_search import Curve, Tolerance, search
from neurofreeze.models.load import load_config, load_model, load_tokenizer
from neurofreeze.neurons import NeuronMap
from neurofreeze.stages.context import Run
from neurofreeze.strategies import NeuronScores, Strategy, make, select
from neurofreeze.strategies.base import OwnBatches
from neurofreeze.strategies.scores import Per

Sets = Mapping[str, Sequence[Example]]


@dataclass(frozen=True, eq=False)
class Choice:
    """The neurons to freeze; under SSAH the groups of all, and the curves if their ratios were searched for."""

    mask: NeuronMask
    groups: ssah.Groups | None = None
    search: list[Curve] = field(default_factory=list)


class Chooser:
    """Scores calibration sets with the run's strategy, and chooses by its method.

    Args:
        run: its settings.
        checkpoint: the model; None for the run's start.
    """

    def __init__(self, run: Run, checkpoint: Path | None = None) -> None:
        c, folder = run.config, checkpoint or run.start
        self.config = c
        # Before any weights are loaded: an architecture that cannot be mapped must not cost a download or a minute.
        NeuronMap.of(load_config(folder), c.granularity)  # type: ignore[arg-type]
        self.strategy = make(c.strategy.name, c.strategy.options)
        self.method = c.strategy.method if c.method.name == "auto" else c.method.name
        _require_fit(self.method, self.strategy)
        self.model, self.tokenizer = load_model(folder), load_tokenizer(folder)

    def choose(self, sets: Sets, what: str, unfinished: Path | None = None) -> Choice:
        """Choose by nothing but the calibration sets, "safety" and "utility"; `what` is shown with the progress.

        Scores are kept in the folder `unfinished` until the caller removes it, so that an interrupted choice goes on.
        """
        c, per = self.config, cast(Per, self.config.method.per)
        if self.method in ("ssah", "difference"):
            safety, utility = self.contrast(sets, what, unfinished)
            if self.method == "difference":
                rule = {"rule": "difference", "fraction": c.fraction, "minus": c.method.minus, "per": per}
                mask = safety.top(c.fraction, per) - utility.top(c.method.minus, per)
                return Choice(_some(mask.with_config(strategy={**safety.strategy, **rule}), c))
            ratios, curves = self._ratios(safety, utility, sets, what)
            groups = ssah.group(safety, utility, ratios)
            mask = self._freeze(groups, safety, utility)
            return Choice(self._with_search(mask, curves) if curves else mask, groups, curves)
        scores = self._score(sets, what, unfinished)
        if self.method == "top":
            return Choice(_some(scores.top(c.fraction, per), c))
        threshold = c.strategy.threshold if c.method.threshold is None else c.method.threshold
        return Choice(_some(scores.above(threshold), c))

    def contrast(self, sets: Sets, what: str, unfinished: Path | None = None) -> tuple[NeuronScores, NeuronScores]:
        """The scores on "safety" and on "utility"; for what is not said see `choose`."""
        return (
            self._score({"safety": sets["safety"]}, f"{what}, safety", unfinished and unfinished / "safety"),
            self._score({"safety": sets["utility"]}, f"{what}, utility", unfinished and unfinished / "utility"),
        )

    def _freeze(self, groups: ssah.Groups, safety: NeuronScores, utility: NeuronScores) -> NeuronMask:
        c = self.config.method
        if c.freeze == "esu_top_cu":
            return ssah.freeze_top_complex(groups, safety, utility, c.top_cu)
        if c.freeze == "esu_all_cu":
            return ssah.freeze_all_complex(groups, safety, utility)
        if c.freeze.startswith("all_but_"):
            return ssah.freeze_all_but(groups, safety, ssah.GROUPS.index(c.freeze.removeprefix("all_but_").upper()))
        return ssah.freeze_mask(groups, safety, utility, self.config.fraction)

    def _score(self, sets: Sets, what: str, unfinished: Path | None) -> NeuronScores:
        c = self.config
        own = isinstance(self.strategy, OwnBatches)  # only it knows how many
        batches = 0 if own else sum(-(-len(sets[name]) // c.strategy.batch_size) for name in self.strategy.sets)
        with stage(what, batches or None) as bar:
            return select(
                self.model,
                self.tokenizer,
                sets,
                self.strategy,
                granularity=c.granularity,
                batch_size=c.strategy.batch_size,
                max_length=c.strategy.max_length,
                progress=bar.advance,
                resume=unfinished,
                keep=True,
            )

    def _ratios(
        self, safety: NeuronScores, utility: NeuronScores, sets: Sets, what: str
    ) -> tuple[ssah.Ratios, list[Curve]]:
        c, size = self.config.method, self.config.strategy.batch_size
        if not c.search:
            return ssah.Ratios(**vars(c.ratios)), []
        harmful, ordinary = (_sample(sets[role], c.search_prompts, self.config.seed) for role in ("safety", "utility"))
        with stage(f"{what}, ratios", (1 + 3 * len(c.grid)) * steps(harmful, ordinary, size)) as bar:

            def measure(mask: NeuronMask | None) -> Pruned:
                return prune(
                    self.model,
                    self.tokenizer,
                    mask,
                    harmful,
                    ordinary,
                    batch_size=size,
                    max_length=self.config.strategy.max_length,
                    progress=bar.advance,
                )

            ratios, curves = search(safety, utility, measure, c.grid, Tolerance(**vars(c.tolerance)))
        for curve in curves:
            say(f"{what}, ratio found by pruning: {curve}")
        return ratios, curves

    def _with_search(self, mask: NeuronMask, curves: list[Curve]) -> NeuronMask:
        c = self.config.method
        search = {
            "grid": list(c.grid),
            "tolerance": asdict(c.tolerance),
            "prompts": c.search_prompts,
            "no_ratio_fits": [curve.group for curve in curves if not curve.fits],
        }
        return mask.with_config(strategy={**mask.config.strategy, "search": search})


def _sample(examples: Sequence[Example], count: int | None, seed: int) -> list[Example]:
    if count is None or count >= len(examples):
        return list(examples)
    return [examples[index] for index in sorted(random.Random(seed).sample(range(len(examples)), count))]


def _require_fit(method: str, strategy: Strategy) -> None:
    if method in ("ssah", "difference", "budget") and strategy.sets != ("safety",):
        raise ConfigError(
            f"method={method} compares a strategy's scores on safety and on utility data, but {strategy.name!r} "
            f"{'contrasts the two itself' if strategy.sets else 'reads no data'}; use method=top or method=above"
        )


def _some(mask: NeuronMask, config: Config) -> NeuronMask:
    if mask.count == 0:
        raise ConfigError(
            f"strategy={config.strategy.name} chooses no neuron by this method; lower method.threshold or "
            "method.minus, or use method=top"
        )
    return mask
