"""What the stages of one run share: its settings, its folder, its data, its starting model."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from neurofreeze.config.schema import UNFROZEN_ARMS, Config, TrainingConfig
from neurofreeze.errors import ModelError
from neurofreeze.models.load import load_config
from neurofreeze.models.resolve import ModelSource, resolve
from neurofreeze.neurons import NeuronMap
from neurofreeze.stages.datasets import Datasets
from neurofreeze.stages.folder import RunFolder, settings_digest
from neurofreeze.training.stopping import StopSignals


class Run:
    """One run: settings and folder, with data and model found when first needed."""

    def __init__(
        self, config: Config, path: Path, overrides: Sequence[str] = (), signals: StopSignals | None = None
    ) -> None:
        self.started = time.monotonic()
        self.config = config
        self.overrides = tuple(overrides)  # as given on the command line, for the report
        self.folder = RunFolder(path, config.overwrite)
        self.signals = signals or StopSignals()  # that may ask this process to stop

    @cached_property
    def source(self) -> ModelSource:
        """Where the model's files are."""
        return resolve(self.config.model, self.config.revision)

    @cached_property
    def data(self) -> Datasets:
        """All data sets, disjoint."""
        c = self.config
        return Datasets.read(
            c.data,
            align=c.trained_on == "alignment" or c.alignment.mode != "never",
            replay=c.replays,
            replay_answers=c.replay.weight > 0,
            preferences=c.trained_on == "preferences",
            limit=c.evaluation.limit,
            seed=c.seed,
        )

    @property
    def start(self) -> Path:
        """The checkpoint that selection and fine-tuning start from: the model, aligned if it had to be."""
        result = self.folder.result("align")
        return self.aligned if result is not None and result["aligned"] else self.source.folder

    @property
    def aligned(self) -> Path:
        """Where the alignment stage leaves its checkpoint, if it has to make one."""
        return self.folder.path / "aligned"

    def arm(self, name: str) -> Path:
        """The fine-tuned checkpoint of an arm."""
        return self.folder.path / "arms" / name

    def mask(self, arm: str) -> Path:
        """The mask of an arm."""
        return self.folder.path / "selection" / arm

    def training(self, arm: str) -> TrainingConfig:
        """How an arm is fine-tuned: one with a mask for as many times the steps, or epochs, as was asked for.

        Under method=budget every arm has a learning rate of its own.
        """
        c = self.config.training
        if self.config.method.name == "budget":
            return replace(c, learning_rate=getattr(self.config.method.budget.learning_rates, arm))
        times = 1.0 if arm in UNFROZEN_ARMS else c.frozen_times
        steps = None if c.steps is None else max(1, round(times * c.steps))
        return replace(c, steps=steps, epochs=times * c.epochs, frozen_times=1.0)

    @property
    def trained_on(self) -> str:
        """The role of the examples that arms are trained on."""
        return self.config.trained_on

    def align_settings(self) -> dict[str, Any]:
        """What the starting checkpoint depends on."""
        c = self.config
        return {
            "model": c.model,
            "revision": c.revision,
            "origin": self.source.origin,
            "seed": c.seed,
            "alignment": asdict(replace(c.alignment, training=_lasting(c.alignment.training))),
            "phrases": c.evaluation.phrases,
            "data": self.data.digests("alignment", "safety"),
        }

    def select_settings(self) -> dict[str, Any]:
        """What the masks depend on."""
        c = self.config
        return {
            "start": settings_digest(self.align_settings()),
            "seed": c.seed,
            "fraction": c.fraction,
            "granularity": c.granularity,
            "strategy": asdict(c.strategy),
            "method": asdict(c.method),
            **({"rest": list(c.freeze.kinds)} if c.freeze.kinds else {}),
            "data": self.data.digests("safety", "utility"),
        }

    def train_settings(self, arm: str) -> dict[str, Any]:
        """What an arm's checkpoint depends on."""
        c = self.config
        start = self.align_settings() if arm in UNFROZEN_ARMS else self.select_settings()
        return {
            "start": settings_digest(start),
            "seed": c.seed,
            "training": asdict(_lasting(self.training(arm), split=c.replays)),
            "data": self.data.digests(self.trained_on, *(["replay"] if c.replays else [])),
            **{name: asdict(getattr(c, name)) for name in ("replay", "anchor") if getattr(c, name).weight},
            **(self._hardening() if c.hardens else {}),
        }

    def _hardening(self) -> dict[str, Any]:
        name = self.config.method.name
        return {name: asdict(getattr(self.config.method, name)), "phrases": self.config.evaluation.phrases}

    def require_freezable_rest(self) -> None:
        """Raise ConfigError if settings freeze the embeddings or lm_head of a model that ties them, but not both."""
        if self.config.freeze.kinds:
            neuron_map = NeuronMap.of(load_config(self.source.folder), self.config.granularity)  # type: ignore[arg-type]
            neuron_map.held(self.config.freeze.kinds)

    def require_space(self) -> None:
        """Raise RunError unless all checkpoints of the run will fit on the disk."""
        size = sum(path.stat().st_size for path in self.source.folder.glob("*.safetensors"))
        if size == 0:
            raise ModelError(f"{self.source.folder} has no safetensors weights; expected model.safetensors or shards")
        missing = [arm for arm in self.config.arms if not self.arm(arm).is_dir()]
        if missing:
            # One more for the copy that is being written.
            self.folder.require_space(size * (len(missing) + 2))


def _lasting(training: TrainingConfig, split: bool = False) -> TrainingConfig:
    """What of it may not change between one arm and the next, as between interruptions: see training.fitting.identity.

    `split` says that the result depends on how a batch is split too.
    """
    found = replace(training, save_steps=0, check_every=0)
    whole = training.batch_size * training.gradient_accumulation
    return found if split else replace(found, batch_size=whole, gradient_accumulation=1)


def parameters(folder: Path) -> int:
    """How many parameters a checkpoint holds, from its config and headers."""
    from neurofreeze.checkpoints import open_parameters, read_config

    with open_parameters(folder, read_config(folder)) as weights:
        return len(list(weights))


def read_json(path: Path) -> Any:
    """A JSON file's content."""
    return json.loads(path.read_text(encoding="utf-8"))
