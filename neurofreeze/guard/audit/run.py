"""The stages of an audit: the vector, if one is to be found, the original, every state of the intervention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from neurofreeze.config.audit import AuditConfig
from neurofreeze.console import say, stage
from neurofreeze.data import Example, digest, read, require_disjoint
from neurofreeze.evaluation.statistics import Mean, Rate
from neurofreeze.guard.audit import states
from neurofreeze.guard.audit.changes import Change, changes
from neurofreeze.guard.audit.identity import identity
from neurofreeze.guard.audit.loading import require_adapter
from neurofreeze.guard.audit.reading import AuditData, Instrument, Reading
from neurofreeze.guard.audit.states import State
from neurofreeze.guard.steering import recipes
from neurofreeze.guard.steering.vector import SteeringVector
from neurofreeze.models.load import load_config, load_model, load_tokenizer
from neurofreeze.models.resolve import resolve
from neurofreeze.stages.folder import RunFolder

VECTOR = "vector"  # folder of the steering vector that was found


class Audit:
    """One audit in one folder.

    Args:
        config: its settings.
        path: the folder, in which complete stages are reused.
    """

    def __init__(self, config: AuditConfig, path: Path) -> None:
        self.config = config
        self.folder = RunFolder(path, config.overwrite)
        self.source = resolve(config.model, config.revision)

    def run(self) -> tuple[Reading, list[Change]]:
        """The original, and every state against it.

        Raises:
            ConfigError, MaskError, ModelError, DataError: if something does not fit the model.
            RunError: if the folder holds an audit with other settings.
        """
        self._require_disjoint()
        found = self._states()
        original = self._measured("original", {}, lambda advance: self._instrument.original(advance))
        readings = {}
        for state in found:
            measure = self._measuring(state)
            readings[state.name] = self._measured(state.name, state.settings, measure)
        return original, changes(original, found, readings, self.config.tolerance)

    @cached_property
    def data(self) -> AuditData:
        """All prompts that something is measured on."""
        d, limit = self.config.data, self.config.evaluation.limit
        return AuditData(
            harmful=read(d.harmful, responses=False, limit=limit),
            lookalikes=read(d.lookalikes, responses=False, limit=limit),
            general=read(d.general, limit=limit),
            probe_harmful=read(d.probe_harmful, responses=False),
            probe_harmless=[e for source in d.probe_harmless for e in read(source, responses=False)],
        )

    def _measuring(self, state: State) -> Callable[[Callable[[], None]], Reading]:
        return lambda advance: self._instrument.changed(lambda: state.applied(self._model), advance)

    def _measured(self, name: str, settings: dict[str, Any], work: Callable[[Callable[[], None]], Reading]) -> Reading:
        def measure() -> dict[str, Any]:
            steps = self._instrument.steps
            with stage(f"audit {name}", steps) as bar:
                reading = work(bar.advance)
            say(_told(name, reading))
            return asdict(reading)

        return Reading.of(self.folder.run(f"audit-{name}", {**self._settings, **settings}, measure))

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """What every reading depends on."""
        c = self.config
        names = ("phrases", "max_new_tokens", "batch_size")
        return {
            "model": identity(self.source.folder),
            "evaluation": {name: getattr(c.evaluation, name) for name in names},
            "tokens": c.tokens,
            "max_length": c.max_length,
            "probe": asdict(c.probe),
            "data": {name: digest(rows) for name, rows in vars(self.data).items()},
        }

    def _states(self) -> list[State]:
        c = self.config
        if c.intervention == "steering":
            return states.steered(c, self._vector())
        if c.intervention == "checkpoint":
            return states.tuned(resolve(str(c.tuned)).folder)
        if c.intervention == "adapter":
            return states.adapted(require_adapter(Path(str(c.adapter))), self.source.folder)
        if c.intervention == "gate":
            unseen = [*self.data.harmful, *self.data.lookalikes]
            return states.gated(Path(str(c.gate)), self.source.folder, unseen)
        return (states.masked if c.intervention == "mask" else states.pruned)(c, self.source.folder)

    def _vector(self) -> SteeringVector:
        c = self.config.steering
        return self._built() if c.vector is None else self._read(c.vector)

    def _built(self) -> SteeringVector:
        c, mixed = self.config.steering, self._mixed
        settings = {
            "model": identity(self.source.folder),
            "steering": {"recipe": c.recipe, "method": c.by, "mix": c.mix, "layer": c.layer, "prompts": c.prompts},
            "data": {"benign": digest(self._benign), "mixed": digest(mixed)},
        }
        path = self.folder.path / VECTOR

        def build() -> dict[str, Any]:
            size = self.config.evaluation.batch_size
            with stage("audit vector"):
                vector = recipes.build(self._model, self._tokenizer, c, self._benign, mixed, batch_size=size)
            vector.save_pretrained(path)
            return {"digest": vector.digest}

        self.folder.run("audit-vector", settings, build, path)
        return SteeringVector.from_pretrained(path)

    def _read(self, source: str) -> SteeringVector:
        """The vector of a file; if it does not say how large the layers' states are, that is measured."""
        c = self.config.steering
        vector = SteeringVector.from_pretrained(source)
        vector = vector if c.layer is None else vector.at(c.layer)
        vector.check(load_config(self.source.folder))
        layers = sorted(vector.directions.keys() - vector.config.hidden_norms.keys())
        if c.unit == "raw" or not layers:
            return vector
        settings = {"model": identity(self.source.folder), "layers": layers, "data": {"benign": digest(self._benign)}}

        def measure() -> dict[str, Any]:
            size = self.config.evaluation.batch_size
            norms = recipes.hidden_norms(self._model, self._tokenizer, layers, self._benign, batch_size=size)
            return {"norms": list(norms.items())}

        return vector.with_norms(dict(self.folder.run("audit-norms", settings, measure)["norms"]))

    @cached_property
    def _benign(self) -> list[Example]:
        return read(self.config.data.benign, responses=False, limit=self.config.steering.prompts)

    @cached_property
    def _mixed(self) -> list[Example]:
        mixes = self.config.steering.mix != "none" and self.config.steering.vector is None
        return read(self.config.data.mixed, responses=False, limit=len(self._benign)) if mixes else []

    def _require_disjoint(self) -> None:
        roles = dict(vars(self.data))
        if self.config.intervention == "steering":
            roles |= {"benign": self._benign, "mixed": self._mixed}
        require_disjoint({f"data.{name}": rows for name, rows in roles.items()})

    @cached_property
    def _model(self) -> Any:
        return load_model(self.source.folder).eval()

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.source.folder)

    @cached_property
    def _instrument(self) -> Instrument:
        return Instrument(self._model, self._tokenizer, self.data, self.config)


def _told(name: str, reading: Reading) -> str:
    found = reading.outcomes
    return (
        f"audit {name}: refuses {Rate.of(found.refused)} harmful, {Rate.of(found.over_refused)} look-alikes, margin "
        f"{Mean.of(found.margins)}"
    )
