"""Train: one arm's fine-tune on the domain data, from the same start, in the same order, with or without freezing."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from neurofreeze.config.schema import UNFROZEN_ARMS
from neurofreeze.console import say, stage
from neurofreeze.distributed import first_rank
from neurofreeze.enforcement import Enforcement
from neurofreeze.mask import NeuronMask
from neurofreeze.models.load import load_config
from neurofreeze.neurons import NeuronMap
from neurofreeze.stages import hardening
from neurofreeze.stages.context import Run
from neurofreeze.stages.monitoring import monitors, rows
from neurofreeze.summary import FreezeSummary

if TYPE_CHECKING:
    from neurofreeze.training.objectives import Objective


def run(run: Run, arm: str) -> None:
    """Fine-tune one arm into arms/<arm>; for a method that teaches refusals, in its own way."""
    if run.config.hardens:
        hardening.stages(run).train(run, arm)
    else:
        fine_tune_arm(run, arm)


def fine_tune_arm(run: Run, arm: str) -> None:
    """Fine-tune one arm into arms/<arm>, frozen by its mask if it has one."""
    if arm not in UNFROZEN_ARMS:
        first_rank(lambda: run.folder.required("select", "select", run.select_settings()))
    with run.signals.deferred():
        run.folder.run(f"train-{arm}", run.train_settings(arm), lambda: _train(run, arm), run.arm(arm), together=True)


def _train(run: Run, arm: str) -> dict[str, Any]:
    unfrozen = (None, {"frozen_neurons": 0, "frozen_elements": 0})
    mask, report = unfrozen if arm in UNFROZEN_ARMS else _frozen(run, arm)

    from neurofreeze.training.adaptation import SelectiveLayers
    from neurofreeze.training.sft import fine_tune

    with stage(f"train {arm}", run.training(arm).steps) as bar:
        result = fine_tune(
            run.start,
            run.arm(arm),
            getattr(run.data, run.trained_on),
            run.training(arm),
            backend=run.config.backend,
            seed=run.config.seed,
            mask=mask,
            objectives=objectives(run),
            adaptation=SelectiveLayers(mask) if mask and report["enforcement"] == "selective" else None,
            log=run.folder.attempt("train", arm),
            progress=bar.update,
            checked=rows(run, "freeze", arm),
            callbacks=monitors(run, arm),
            signals=run.signals,
            overwrite=run.config.overwrite,
        )
    return {**asdict(result), **report}


def objectives(run: Run) -> list[Objective]:
    """What training loses beside the loss on its data, as the settings ask for."""
    from neurofreeze.training.objectives import Anchor, Replay

    c = run.config
    found: list[Objective] = []
    if c.replay.weight:
        found.append(Replay(c.replay, run.data.replay))
    if c.anchor.weight:
        found.append(Anchor(c.anchor, run.data.replay))
    return found


def _frozen(run: Run, arm: str) -> tuple[NeuronMask, dict[str, Any]]:
    """An arm's mask, and how and how much of the model it freezes."""
    neuron_map = NeuronMap.of(load_config(run.start), run.config.granularity)  # type: ignore[arg-type]
    mask = NeuronMask.from_pretrained(run.mask(arm), model=neuron_map)
    summary = FreezeSummary.of(neuron_map, mask)
    wanted = run.config.training.enforcement
    cheaper = Enforcement.cheaper(neuron_map, mask, run.config.backend.name)
    enforcement = cheaper if wanted == "auto" else Enforcement(wanted, "as asked for")
    say(f"train {arm}: {summary}")
    say(f"train {arm}: enforced by {enforcement.name}: {enforcement.why}")
    return mask, {
        "enforcement": enforcement.name,
        "frozen_neurons": summary.frozen_neurons,
        "frozen_elements": summary.frozen_elements,
    }
