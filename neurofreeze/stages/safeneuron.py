"""SafeNeuron's stages: find safety neurons, train on preferences with them frozen, and prune what is found anew.

Its arms are SafeNeuron and DPO without freezing, on the same pairs in the same order for as many steps and rounds.
"""

from __future__ import annotations

from typing import Any

from neurofreeze.console import say
from neurofreeze.distributed import first_rank
from neurofreeze.errors import ConfigError
from neurofreeze.methods.safeneuron.mixture import mixture
from neurofreeze.models.load import load_config
from neurofreeze.neurons import NeuronMap
from neurofreeze.stages import robustness
from neurofreeze.stages.context import Run
from neurofreeze.stages.rounds import ARM, find, told, train_rounds


def select(run: Run) -> None:
    """Write selection/safeneuron, the mask of the safety neurons of the start."""
    run.folder.run("select", run.select_settings(), lambda: _select(run), run.mask(ARM))


def train(run: Run, arm: str) -> None:
    """Train one arm into arms/<arm>, round by round."""
    if arm == ARM or run.config.method.safeneuron.prune_rounds:
        first_rank(lambda: run.folder.required("select", "select", run.select_settings()))
    with run.signals.deferred():
        run.folder.run(f"train-{arm}", run.train_settings(arm), lambda: _train(run, arm), run.arm(arm), together=True)


def evaluate(run: Run, name: str) -> None:
    """Prune the safety neurons of the start or of an arm, once `name` is evaluated whole."""
    robustness.run(run, name)


def _select(run: Run) -> dict[str, Any]:
    # Before any weights are loaded: an architecture that cannot be mapped must not cost a download or a minute.
    NeuronMap.of(load_config(run.start), run.config.granularity)  # type: ignore[arg-type]
    found = find(run, run.start, "select")
    if found.mask.count in (0, found.mask.total):
        raise ConfigError(
            f"{found.mask.count:,} of {found.mask.total:,} neurons are safety neurons; change tau_es and tau_sas in "
            "method.safeneuron.contrast so that some are and some are not"
        )
    found.mask.save_pretrained(run.mask(ARM))
    say(f"select: {told(found.counts)} of {found.mask.total:,} ({found.mask.fraction:.1%})")
    return {**found.counts, "total": found.mask.total, "groups": {}, "search": []}


def _train(run: Run, arm: str) -> dict[str, Any]:
    c = run.config.method.safeneuron
    pairs = mixture(run.data.preferences, c.safety_share, run.config.seed)
    safety = sum(pair.about == "safety" for pair in pairs)
    say(f"train {arm}: {safety} safety pairs and {len(pairs) - safety} helpfulness pairs, {c.rounds} round(s)")
    return {**train_rounds(run, arm, pairs), "pairs": {"safety": safety, "helpfulness": len(pairs) - safety}}
