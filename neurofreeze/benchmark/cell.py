"""Cell: one arm of one seed on one fine-tuning set, trained once and measured on the way."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from neurofreeze.benchmark.data import SuiteData
from neurofreeze.benchmark.plan import Place
from neurofreeze.benchmark.selecting import drawn
from neurofreeze.config.benchmark import SuiteConfig
from neurofreeze.config.schema import Config, TrainingConfig
from neurofreeze.enforcement import Enforcement
from neurofreeze.errors import FreezeError
from neurofreeze.mask import NeuronMask
from neurofreeze.models.load import load_config
from neurofreeze.neurons import NeuronMap
from neurofreeze.stages import judge
from neurofreeze.stages.context import Run
from neurofreeze.stages.folder import RunFolder
from neurofreeze.verification import verify

STAGE = "cell"


@dataclass(frozen=True)
class Cell:
    """What a worker needs to train and measure one cell.

    Attributes:
        place: which one it is.
        suite: the suite's settings.
        config: its own, with its seed.
        data: prompts by role.
        start: checkpoint folder that every cell starts from.
        origin: digest of all that the start depends on.
        mask: the mask that its arm freezes or is drawn after, None for none.
        folder: of its marker, and of its checkpoint if that is kept.
    """

    place: Place
    suite: SuiteConfig
    config: Config
    data: SuiteData
    start: Path
    origin: str
    mask: Path | None
    folder: Path

    @property
    def settings(self) -> dict[str, Any]:
        """All that its result depends on."""
        c, arm = self.config, self.suite.arms[self.place.arm]
        own = ("replay",) if c.replays else ()
        return {
            "start": self.origin,
            "seed": self.place.seed,
            "training": asdict(self._training()),
            "mask": None if self.mask is None else NeuronMask.from_pretrained(self.mask).digest,
            "rest": list(c.freeze.kinds) if self.mask else [],
            "freeze": arm.freeze,
            "lora_rank": arm.lora_rank,
            **{name: asdict(getattr(c, name)) for name in ("replay", "anchor") if getattr(c, name).weight},
            **measured_settings(c, self.suite, self.data),
            "trained_on": self.data.sets.digests("train", *own),
            "at": list(self.suite.at),
        }

    def result(self) -> dict[str, Any] | None:
        """What it came to, None if it is to be trained.

        Raises:
            RunError: if it is complete with other settings and must not be overwritten.
        """
        return RunFolder(self.folder, self.config.overwrite).complete(STAGE, self.settings)

    def run(self) -> dict[str, Any]:
        """Train and measure it, unless it is complete."""
        return RunFolder(self.folder, self.config.overwrite).run(STAGE, self.settings, self._train)

    def _train(self) -> dict[str, Any]:
        from neurofreeze.benchmark.measuring import Measuring
        from neurofreeze.benchmark.trajectory import TrajectoryCallback
        from neurofreeze.stages.train import objectives
        from neurofreeze.training.adaptation import LoRA, SelectiveLayers
        from neurofreeze.training.sft import fine_tune

        arm, seed = self.suite.arms[self.place.arm], self.place.seed
        mask = None if self.mask is None else drawn(self.mask, arm, seed)
        adaptation: Any = None if arm.lora_rank is None else LoRA(arm.lora_rank, seed, mask=mask)
        if mask is not None and adaptation is None and self._selective(mask):
            adaptation = SelectiveLayers(mask)
        measuring = Measuring(self.start, self.data, self.config, self.suite.prompts)

        def measure(model: Any) -> dict[str, Any]:
            measuring.take(model, adaptation)
            return measuring.point()

        trajectory = TrajectoryCallback(self.suite.at, measure)
        output = self.folder / "model"
        trained = fine_tune(
            self.start,
            output,
            self.data.sets.train,
            self._training(),
            seed=seed,
            mask=mask,
            adaptation=adaptation,
            objectives=objectives(self._run()),
            callbacks=[trajectory],
            overwrite=True,
        )
        # What was measured last is what was saved.
        found = {"points": trajectory.points, "end": measuring.end(), "training": asdict(trained)}
        if mask is not None:
            found |= self._verified(output, mask)
        if not self.suite.keep:
            shutil.rmtree(output)
        return found

    def _run(self) -> Run:
        run = Run(self.config, self.folder)
        run.data = self.data.sets  # sampled, and split by the suite's seed in place of the cell's
        return run

    def _training(self) -> TrainingConfig:
        arm = self.suite.arms[self.place.arm]
        found = self._run().training(arm.freeze)
        steps = None if found.steps is None else max(1, round(arm.times * found.steps))
        return replace(found, steps=steps, epochs=arm.times * found.epochs)

    def _selective(self, mask: NeuronMask) -> bool:
        wanted = self.config.training.enforcement
        neuron_map = NeuronMap.of(load_config(self.start), self.config.granularity)  # type: ignore[arg-type]
        return wanted == "selective" or (
            wanted == "auto" and Enforcement.cheaper(neuron_map, mask, "plain").name == "selective"
        )

    def _verified(self, output: Path, mask: NeuronMask) -> dict[str, Any]:
        """What froze, from the files alone.

        Raises:
            FreezeError: if a frozen bit differs.
        """
        found = verify(self.start, output, mask)
        if not found.ok:
            raise FreezeError(f"{found.changed:,} frozen elements of {self.place} changed: {found}")
        return {
            "frozen_neurons": mask.count,
            "neurons": mask.total,
            "frozen_elements": found.frozen,
            "fingerprint": found.tuned_fingerprint,
        }


def measured_settings(config: Config, suite: SuiteConfig, data: SuiteData) -> dict[str, Any]:
    """What measurements depend on beside the model."""
    evaluation = {key: value for key, value in asdict(config.evaluation).items() if key not in judge.SETTINGS}
    return {
        "evaluation": evaluation,
        "max_length": config.training.max_length,
        "margin_prompts": suite.prompts.margin,
        "measured_on": data.digests("holdout", "harmful", "lookalikes", "general"),
    }
