"""Settings that only libraries, strategies or folders can tell to be wrong, looked at before anything is computed."""

from __future__ import annotations

from pathlib import Path

from neurofreeze.config.checks import check
from neurofreeze.config.schema import Config, TrainingConfig
from neurofreeze.stages.context import Run


def require(run: Run) -> None:
    """Raise ConfigError unless all that the settings name is known: minutes of training come before it is needed."""
    c = run.config
    _require_training("training", c.training)
    _require_training("alignment.training", c.alignment.training)
    _require_reference(c)
    if run.folder.result("select") is None:  # afterwards a strategy's own folders may be gone
        _require_strategy(run)


def _require_training(key: str, training: TrainingConfig) -> None:
    from transformers import SchedulerType
    from transformers.training_args import OptimizerNames

    for name, known in (("optimizer", OptimizerNames), ("scheduler", SchedulerType)):
        found, names = getattr(training, name), [member.value for member in known]
        check(found in names, f"{key}.{name}", found, f"one of {', '.join(names)}")


def _require_reference(config: Config) -> None:
    from neurofreeze.guard.monitor.reference_file import CONFIG

    found = config.monitor.reference
    made = found is None or not config.monitor.every or (Path(found) / CONFIG).is_file()
    check(made, "monitor.reference", found, f"a folder with {CONFIG}, which `neurofreeze monitor` makes")


def _require_strategy(run: Run) -> None:
    from neurofreeze.models.load import load_config
    from neurofreeze.neurons import NeuronMap
    from neurofreeze.strategies import make
    from neurofreeze.strategies.base import Fitted

    method, strategy = run.config.method, run.config.strategy
    own = {"nest": ("probe", method.nest.probe), "safeneuron": ("contrast", method.safeneuron.contrast)}
    found = make(*own.get(method.name, (strategy.name, strategy.options)))
    if isinstance(found, Fitted):
        found.require_fit(NeuronMap.of(load_config(run.source.folder), run.config.granularity))  # type: ignore[arg-type]
