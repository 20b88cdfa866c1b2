"""The masks of a suite: chosen once for each distinct choice, which all seeds share; random ones anew for each seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neurofreeze.config.benchmark import SuiteArmConfig
from neurofreeze.config.schema import Config
from neurofreeze.console import say
from neurofreeze.mask import NeuronMask
from neurofreeze.stages.choosing import Chooser
from neurofreeze.stages.context import Run
from neurofreeze.stages.datasets import Datasets
from neurofreeze.stages.folder import settings_digest
from neurofreeze.verification import weights_fingerprint


def chosen(config: Config, arm: SuiteArmConfig, data: Datasets, folder: Path) -> Path | None:
    """The mask that an arm freezes, or that its random one is drawn after; chosen now unless it is there already.

    Args:
        config: the arm's settings.
        arm: what of them is frozen.
        data: with the calibration sets.
        folder: of the suite.
    """
    if arm.freeze == "none":
        return None
    run = Run(config, folder)
    run.data = data
    settings = {**run.select_settings(), "rest": list(config.freeze.kinds)}
    name = settings_digest(settings)
    path = folder / "masks" / name
    if run.folder.complete(f"select-{name}", settings, path) is None:
        run.folder.run(f"select-{name}", settings, lambda: _choose(run, path), path)
    return path


def drawn(path: Path, arm: SuiteArmConfig, seed: int) -> NeuronMask:
    """What one cell freezes."""
    mask = NeuronMask.from_pretrained(path)
    return NeuronMask.random_like(mask, seed) if arm.freeze == "random" else mask


def _choose(run: Run, path: Path) -> dict[str, Any]:
    c = run.config
    # Of one strategy, whatever is cut from its scores: what was gathered for them is kept for the next choice.
    scoring = {key: value for key, value in run.select_settings().items() if key not in ("fraction", "method")}
    gathered = run.folder.path / "scores" / settings_digest(scoring)
    choice = Chooser(run).choose(
        {"safety": run.data.safety, "utility": run.data.utility}, f"select {c.strategy.name}", gathered
    )
    mask = choice.mask.with_rest(*c.freeze.kinds)
    mask.with_config(
        model=c.model,
        revision=c.revision,
        fingerprint=weights_fingerprint(run.start, mask),
        calibration=run.data.digests("safety", "utility"),
    ).save_pretrained(path)
    say(f"select {c.strategy.name}: freezing {mask.count:,} of {mask.total:,} neurons ({mask.fraction:.1%})")
    return {"neurons": mask.count, "total": mask.total}
