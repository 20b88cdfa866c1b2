"""NeST's stages: choose rows and their update vectors, then teach refusals from one start to each arm.

Its arms are the update vectors, full fine-tuning and LoRA, on the same data in the same order for as many steps.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from neurofreeze.console import say, stage
from neurofreeze.data.batches import template_record
from neurofreeze.distributed import first_rank
from neurofreeze.errors import FreezeError
from neurofreeze.evaluation.phrases import phrase_list
from neurofreeze.mask import NeuronMask
from neurofreeze.methods.nest.choice import Updates, choose
from neurofreeze.methods.nest.elsewhere import changed_elsewhere
from neurofreeze.methods.nest.mixture import mixture
from neurofreeze.methods.nest.rows import require_gated, safety_rows
from neurofreeze.models.load import load_config, load_model, load_tokenizer
from neurofreeze.neurons import NeuronMap
from neurofreeze.stages.context import Run
from neurofreeze.stages.monitoring import monitors
from neurofreeze.strategies import make
from neurofreeze.strategies.probe import Probe
from neurofreeze.summary import FreezeSummary
from neurofreeze.verification import weights_fingerprint

ARM = "nest"
FILE = "updates.safetensors"


def select(run: Run) -> None:
    """Write selection/updates.safetensors, and selection/nest, the mask of the neurons that get no update."""
    run.folder.run("select", run.select_settings(), lambda: _select(run), run.mask(ARM), _file(run))


def train(run: Run, arm: str) -> None:
    """Train one arm into arms/<arm>, an ordinary checkpoint with its updates or adapters folded in."""
    if arm == ARM:
        first_rank(lambda: run.folder.required("select", "select", run.select_settings()))
    with run.signals.deferred():
        run.folder.run(f"train-{arm}", run.train_settings(arm), lambda: _train(run, arm), run.arm(arm), together=True)


def _select(run: Run) -> dict[str, Any]:
    c, nest = run.config, run.config.method.nest
    neuron_map = _neuron_map(run)
    require_gated(neuron_map)  # before any weights are loaded
    probe = make("probe", nest.probe)
    assert isinstance(probe, Probe)
    sets = {"safety": run.data.safety, "utility": run.data.utility}
    model, tokenizer = load_model(run.start), load_tokenizer(run.start)
    with stage("select rows", sum(-(-len(examples) // c.strategy.batch_size) for examples in sets.values())) as bar:
        found = safety_rows(
            model,
            tokenizer,
            sets,
            probe,
            nest.threshold,
            batch_size=c.strategy.batch_size,
            max_length=c.strategy.max_length,
            progress=bar.advance,
        )
    updates = choose(found, share=nest.share, most=nest.clusters, standardize=nest.standardize, seed=c.seed)
    updates.save(_file(run))
    mask = updates.untouched(neuron_map)
    mask.with_config(
        model=c.model,
        revision=c.revision,
        fingerprint=weights_fingerprint(run.start, mask),
        calibration=run.data.digests("safety", "utility"),
        strategy={
            "name": ARM,
            **asdict(nest),
            "rows": updates.rows,
            "vectors": updates.vectors,
            "chat_template": template_record(tokenizer),
        },
    ).save_pretrained(run.mask(ARM))
    say(f"select: {updates}, {updates.parameters(neuron_map):,} parameters; {mask.count:,} neurons stay as they are")
    return {"rows": updates.rows, "vectors": updates.vectors, "groups": {}, "search": []}


def _train(run: Run, arm: str) -> dict[str, Any]:
    # Not before it is needed: it imports the trainer.
    from neurofreeze.training.adaptation import Adaptation, LoRA, UpdateVectors
    from neurofreeze.training.sft import fine_tune

    c, nest = run.config, run.config.method.nest
    refusals, benign = mixture(
        run.data.alignment, phrase_list(c.evaluation.phrases).is_refusal, nest.benign_share, c.seed
    )
    say(f"train {arm}: {len(refusals)} refusals and {len(benign)} benign answers")
    adaptation: Adaptation | None = None
    if arm == ARM:
        adaptation = UpdateVectors(Updates.load(_file(run)))
    elif arm == "lora":
        adaptation = LoRA(nest.lora_rank, c.seed)
    with stage(f"train {arm}", c.training.steps) as bar:
        result = fine_tune(
            run.start,
            run.arm(arm),
            [*refusals, *benign],
            replace(c.training, learning_rate=getattr(nest.learning_rates, arm)),
            backend=c.backend,
            seed=c.seed,
            adaptation=adaptation,
            log=run.folder.attempt("train", arm),
            progress=bar.update,
            callbacks=monitors(run, arm),
            signals=run.signals,
            overwrite=run.config.overwrite,
        )
    say(f"train {arm}: {result.optimized:,} parameters trained")
    return {**asdict(result), **first_rank(lambda: _frozen(run, arm))}


def _frozen(run: Run, arm: str) -> dict[str, int]:
    """What the report says of the neurons without updates; nothing but rows with one may have changed."""
    if arm != ARM:
        return {"frozen_neurons": 0, "frozen_elements": 0}
    changed = changed_elsewhere(run.start, run.arm(arm), Updates.load(_file(run)))
    if changed:
        raise FreezeError(f"{changed:,} elements changed in rows of {run.arm(arm)} that have no update vector")
    neuron_map = _neuron_map(run)
    summary = FreezeSummary.of(neuron_map, NeuronMask.from_pretrained(run.mask(ARM), model=neuron_map))
    return {"frozen_neurons": summary.frozen_neurons, "frozen_elements": summary.frozen_elements}


def _neuron_map(run: Run) -> NeuronMap:
    return NeuronMap.of(load_config(run.start), run.config.granularity)  # type: ignore[arg-type]


def _file(run: Run) -> Path:
    return run.folder.path / "selection" / FILE
