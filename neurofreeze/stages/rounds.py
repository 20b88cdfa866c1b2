"""SafeNeuron's rounds: freeze what answers to harm, train, and find anew what does; and their control without freezing.

A round's checkpoint goes once the next one is complete. Its mask and its numbers stay.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neurofreeze.console import say, stage
from neurofreeze.data.batches import template_record
from neurofreeze.data.preferences import Preference
from neurofreeze.errors import ConfigError, FreezeError
from neurofreeze.mask import NeuronMask
from neurofreeze.methods.safeneuron import SafetyNeurons, identify
from neurofreeze.models.load import load_config, load_model, load_tokenizer
from neurofreeze.neurons import NeuronMap
from neurofreeze.stages.context import Run
from neurofreeze.stages.folder import settings_digest
from neurofreeze.stages.monitoring import monitors, rows
from neurofreeze.strategies import make
from neurofreeze.strategies.contrast import Contrast
from neurofreeze.summary import FreezeSummary
from neurofreeze.verification import verify, weights_fingerprint

ARM = "safeneuron"


@dataclass(frozen=True)
class Round:
    """One round of an arm, and where its files are. T0 is the first."""

    run: Run
    arm: str
    number: int

    @property
    def name(self) -> str:
        """Such as "safeneuron-T1"."""
        return f"{self.arm}-T{self.number}"

    @property
    def before(self) -> Round:
        """The one before."""
        return Round(self.run, self.arm, self.number - 1)

    @property
    def last(self) -> bool:
        """Whether it leaves the arm's checkpoint."""
        return self.number == self.run.config.method.safeneuron.rounds - 1

    @property
    def base(self) -> Path:
        """The checkpoint that it begins with."""
        return self.before.checkpoint if self.number else self.run.start

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that it leaves."""
        return self.run.arm(self.arm) if self.last else self.run.folder.path / "rounds" / self.name

    @property
    def mask(self) -> Path:
        """The mask of what it freezes."""
        return self.run.mask(self.name if self.number else ARM)

    @property
    def found(self) -> Path:
        """The mask of the safety neurons of its checkpoint."""
        return self.run.folder.path / "identified" / self.name

    def complete(self) -> bool:
        """Whether its checkpoint is there to go on from."""
        return self.run.folder.result(f"train-{self.name}") is not None and self.checkpoint.is_dir()

    def settings(self) -> dict[str, Any]:
        """What it depends on."""
        return {"train": settings_digest(self.run.train_settings(self.arm)), "round": self.number}

    def safety_neurons(self) -> NeuronMask:
        """The safety neurons of its checkpoint, found once."""
        settings = {**self.settings(), "select": settings_digest(self.run.select_settings())}
        self.run.folder.run(f"identify-{self.name}", settings, self._identify, self.found)
        return NeuronMask.from_pretrained(self.found)

    def _identify(self) -> dict[str, Any]:
        found = find(self.run, self.checkpoint, f"identify {self.name}")
        found.mask.save_pretrained(self.found)
        frozen = 0 if self.arm != ARM else (found.mask & NeuronMask.from_pretrained(self.mask)).count
        say(f"identify {self.name}: {told(found.counts)}, {frozen:,} of them frozen already")
        return {**found.counts, "frozen_already": frozen}


def find(run: Run, folder: Path, what: str) -> SafetyNeurons:
    """The safety neurons of a checkpoint, by the calibration sets; `what` is shown with the progress."""
    c = run.config
    sets = {"safety": run.data.safety, "utility": run.data.utility}
    contrast = make("contrast", c.method.safeneuron.contrast)
    assert isinstance(contrast, Contrast)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    with stage(what, sum(-(-len(examples) // c.strategy.batch_size) for examples in sets.values())) as bar:
        found = identify(
            model,
            tokenizer,
            sets,
            contrast,
            granularity=c.granularity,  # type: ignore[arg-type]
            batch_size=c.strategy.batch_size,
            max_length=c.strategy.max_length,
            progress=bar.advance,
        )
    mask = found.mask.with_config(
        model=c.model,
        revision=c.revision,
        fingerprint=weights_fingerprint(folder, found.mask),
        calibration=run.data.digests("safety", "utility"),
        strategy={**found.mask.config.strategy, "chat_template": template_record(tokenizer)},
    )
    return SafetyNeurons(found.es, found.sas, mask)


def told(counts: dict[str, int]) -> str:
    """Counts of safety neurons in words."""
    return f"{counts['neurons']:,} safety neurons ({counts['es']:,} ES, {counts['sas']:,} SAS, {counts['both']:,} both)"


def train_rounds(run: Run, arm: str, pairs: list[Preference]) -> dict[str, Any]:
    """Train an arm round by round; returns what a training stage does, and the numbers of each round.

    Raises:
        ConfigError: if nothing is left to train.
        FreezeError: if a frozen bit differs after a round.
    """
    rounds = [Round(run, arm, number) for number in range(run.config.method.safeneuron.rounds)]
    newest = max((found.number for found in rounds if found.complete()), default=-1)
    results: list[dict[str, Any]] = []
    for each in rounds:
        if each.number and run.config.method.safeneuron.prune_rounds:
            from neurofreeze.stages import robustness

            robustness.prune(each.before)
        outputs = () if each.number < newest else (each.checkpoint,)
        steps = sum(len(result["losses"]) for result in results)
        results.append(
            run.folder.run(
                f"train-{each.name}",
                each.settings(),
                lambda each=each, steps=steps: _train(each, pairs, steps),  # type: ignore[misc]
                *outputs,
                together=True,
            )
        )
        if each.number:
            shutil.rmtree(each.before.checkpoint, ignore_errors=True)
    return _whole(results)


def _train(this: Round, pairs: list[Preference], steps: int) -> dict[str, Any]:
    # Not before it is needed: it imports the trainer.
    from neurofreeze.training.dpo import prefer

    run, c = this.run, this.run.config
    mask = _frozen(this) if this.arm == ARM else None
    with stage(f"train {this.name}", c.training.steps) as bar:
        result = prefer(
            this.base,
            this.checkpoint,
            pairs,
            run.training(this.arm),
            beta=c.method.safeneuron.beta,
            seed=c.seed,
            mask=mask,
            suppress=c.method.safeneuron.suppress,
            log=rows(run, "train", this.arm, steps),
            progress=bar.update,
            checked=rows(run, "freeze", this.arm, steps),
            callbacks=monitors(run, this.arm, steps),
            signals=run.signals,
            overwrite=c.overwrite,
        )
    return {**asdict(result), **_summary(this, mask)}


def _frozen(this: Round) -> NeuronMask:
    """What this round freezes: what the rounds before did, and the safety neurons that are there now."""
    if this.number:
        earlier, found = NeuronMask.from_pretrained(this.before.mask), this.before.safety_neurons()
        mask = earlier | found
        strategy = {**found.config.strategy, "round": this.number, "added": (found - earlier).count}
        mask.with_config(
            model=found.config.model,
            revision=found.config.revision,
            fingerprint=weights_fingerprint(this.base, mask),
            calibration=found.config.calibration,
            strategy=strategy,
        ).save_pretrained(this.mask)
    mask = NeuronMask.from_pretrained(this.mask)
    if mask.count == mask.total:
        raise ConfigError(
            f"{this.name} would freeze all {mask.total:,} neurons; raise tau_es and tau_sas in "
            "method.safeneuron.contrast, or train fewer rounds"
        )
    return mask


def _summary(this: Round, mask: NeuronMask | None) -> dict[str, Any]:
    """Counts of what a round froze, which is compared with its base bit by bit before that may go."""
    if mask is None:
        return {"frozen_neurons": 0, "frozen_elements": 0, "added_neurons": 0, "changed": 0}
    neuron_map = NeuronMap.of(load_config(this.base), this.run.config.granularity)  # type: ignore[arg-type]
    earlier = NeuronMask.from_pretrained(this.before.mask).count if this.number else 0
    found = verify(this.base, this.checkpoint, mask)
    say(f"train {this.name}: {mask.count:,} neurons frozen, {mask.count - earlier:,} of them new; {found}")
    if not found.ok:
        raise FreezeError(f"{found.changed:,} frozen elements of {this.name} changed against {this.base}")
    return {
        "frozen_neurons": mask.count,
        "frozen_elements": FreezeSummary.of(neuron_map, mask).frozen_elements,
        "added_neurons": mask.count - earlier,
        "changed": found.changed,
    }


def _whole(results: list[dict[str, Any]]) -> dict[str, Any]:
    """An arm's result: all rounds one after the other, and what has been frozen over all of them."""
    losses: list[tuple[int, float]] = []
    for result in results:
        before = len(losses)
        losses += [(before + step, loss) for step, loss in result["losses"]]
    kept = ("frozen_neurons", "frozen_elements", "added_neurons", "changed", "seconds")
    return {
        **results[-1],
        "losses": losses,
        "seconds": sum(result["seconds"] for result in results),
        "frozen_neurons": results[0]["frozen_neurons"],
        "frozen_elements": results[0]["frozen_elements"],
        "rounds": [{key: result[key] for key in kept} for result in results],
    }
