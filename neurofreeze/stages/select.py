"""Select: score neurons on the calibration sets, choose what to freeze, and draw the random control."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np

from neurofreeze.config.schema import Config
from neurofreeze.console import say, stage
from neurofreeze.errors import ConfigError
from neurofreeze.mask import NeuronMask
from neurofreeze.methods import ssah
from neurofreeze.models.load import load_config, load_model, load_tokenizer
from neurofreeze.neurons import NeuronMap
from neurofreeze.stages.context import Run
from neurofreeze.strategies import NeuronScores, Strategy, make, select
from neurofreeze.strategies.base import OwnBatches
from neurofreeze.strategies.scores import Per
from neurofreeze.verification import weights_fingerprint

GROUPS_FILE = "groups.safetensors"


def run(run: Run) -> None:
    """Write selection/safety, selection/random and, under SSAH, the groups of all neurons."""
    folder = run.folder.path / "selection"
    outputs = [run.mask("safety"), run.mask("random")]
    run.folder.run("select", run.select_settings(), lambda: _select(run, folder), *outputs)


def _select(run: Run, folder: Path) -> dict[str, Any]:
    c = run.config
    mask, groups = Chooser(run).choose({"safety": run.data.safety, "utility": run.data.utility}, "select")
    for name, chosen in (("safety", mask), ("random", NeuronMask.random_like(mask, c.seed))):
        chosen.with_config(
            model=c.model,
            revision=c.revision,
            fingerprint=weights_fingerprint(run.start, chosen),
            calibration=run.data.digests("safety", "utility") if name == "safety" else {},
        ).save_pretrained(run.mask(name))
    if groups is not None:
        _save_groups(groups, folder / GROUPS_FILE)
    counts = {name: groups.mask(code).count for code, name in enumerate(ssah.GROUPS)} if groups else {}
    of = f"{', '.join(f'{name} {count:,}' for name, count in counts.items())}; " if counts else ""
    say(f"select: {of}freezing {mask.count:,} of {mask.total:,} neurons ({mask.fraction:.1%})")
    return {"neurons": mask.count, "total": mask.total, "groups": counts}


class Chooser:
    """Scores calibration sets with the run's strategy, and chooses by its method."""

    def __init__(self, run: Run) -> None:
        c = self.config = run.config
        # Before any weights are loaded: an architecture that cannot be mapped must not cost a download or a minute.
        NeuronMap.of(load_config(run.start), c.granularity)  # type: ignore[arg-type]
        self.strategy = make(c.strategy.name, c.strategy.options)
        self.method = c.strategy.method if c.method.name == "auto" else c.method.name
        _require_fit(self.method, self.strategy)
        self.model, self.tokenizer = load_model(run.start), load_tokenizer(run.start)

    def choose(self, sets: dict[str, Any], what: str) -> tuple[NeuronMask, ssah.Groups | None]:
        """The neurons to freeze, and under SSAH the groups of all."""
        c, per = self.config, cast(Per, self.config.method.per)
        if self.method in ("ssah", "difference"):
            safety, utility = (self._score({"safety": sets[role]}, f"{what}, {role}") for role in sets)
            if self.method == "difference":
                rule = {"rule": "difference", "fraction": c.fraction, "minus": c.method.minus, "per": per}
                mask = safety.top(c.fraction, per) - utility.top(c.method.minus, per)
                return _some(mask.with_config(strategy={**safety.strategy, **rule}), c), None
            groups = ssah.group(safety, utility, ssah.Ratios(**vars(c.method.ratios)))
            return ssah.freeze_mask(groups, safety, utility, c.fraction), groups
        scores = self._score(sets, what)
        if self.method == "top":
            return _some(scores.top(c.fraction, per), c), None
        threshold = c.strategy.threshold if c.method.threshold is None else c.method.threshold
        return _some(scores.above(threshold), c), None

    def _score(self, sets: dict[str, Any], what: str) -> NeuronScores:
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
            )


def _require_fit(method: str, strategy: Strategy) -> None:
    if method in ("ssah", "difference") and strategy.sets != ("safety",):
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


def _save_groups(groups: ssah.Groups, path: Path) -> None:
    from safetensors.numpy import save

    from neurofreeze.files import write_atomically

    write_atomically(path, save({name: np.array(codes) for name, codes in groups.codes.items()}))
