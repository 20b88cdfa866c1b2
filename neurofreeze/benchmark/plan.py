"""Plan: which cells a suite has, in which order, and the settings of the ordinary run that each is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from neurofreeze.commands.settings import compose_once
from neurofreeze.config.benchmark import SuiteArmConfig, SuiteConfig, SuiteSetConfig
from neurofreeze.config.schema import Config
from neurofreeze.errors import ConfigError

_OWN_DATA = ("safety", "utility", "replay")  # what arms may differ in
# What the start and all measurements depend on beside data.
_OF_ALL = ("model", "revision", "seed", "alignment", "evaluation", "training.max_length")


@dataclass(frozen=True)
class Place:
    """Which cell: one arm of one seed on one fine-tuning set."""

    data: str
    seed: int
    arm: str

    def __str__(self) -> str:
        return f"{self.data}, seed {self.seed}, {self.arm}"


@dataclass(frozen=True)
class Plan:
    """A suite, and the settings of every arm on every fine-tuning set.

    Attributes:
        suite: its settings.
        bases: fine-tuning set -> the settings that its arms share.
        configs: (fine-tuning set, arm) -> its settings; their seed is that of all data and choices, not a cell's.
    """

    suite: SuiteConfig
    bases: dict[str, Config]
    configs: dict[tuple[str, str], Config]

    @classmethod
    def of(cls, suite: SuiteConfig, overrides: Sequence[str]) -> Plan:
        """Compose and check all settings.

        Args:
            suite: settings of the suite.
            overrides: of the ordinary settings, as on the command line.

        Raises:
            ConfigError: if settings are wrong, or an arm's are not for a benchmark, naming the arm.
        """
        shared = [*_overrides(suite.settings), *overrides]
        bases, configs = {}, {}
        for name, found in suite.sets.items():
            of_set = [*shared, *_of_set(found)]
            bases[name] = _composed(of_set, f"set {name}")
            for arm in suite.only:
                config = _composed([*of_set, *_overrides(suite.arms[arm].settings)], f"arm {arm}")
                _require_benchmark(arm, suite.arms[arm], config, bases[name])
                configs[name, arm] = config
        return cls(suite, bases, configs)

    def places(self) -> Iterator[Place]:
        """Every cell, seed by seed, so that an interrupted suite has as many seeds of each arm."""
        for seed in range(self.suite.seeds):
            for data in self.suite.sets:
                for arm in self.suite.only:
                    yield Place(data, seed, arm)

    def config(self, place: Place) -> Config:
        """The settings of a cell, with its seed."""
        return replace(self.configs[place.data, place.arm], seed=place.seed)


def _of_set(found: SuiteSetConfig) -> list[str]:
    given = {"data.train": found.train, "data.holdout": found.holdout}
    return _overrides({**found.settings, **{key: value for key, value in given.items() if value is not None}})


def _composed(overrides: Sequence[str], what: str) -> Config:
    # Of one group Hydra takes one choice only; the last one given counts.
    last = {text.lstrip("+~").partition("=")[0]: text for text in overrides}
    try:
        return compose_once(list(last.values()))[0]
    except ConfigError as error:
        raise ConfigError(f"suite, {what}: {error}") from error


def _overrides(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Settings as the command line has them; keys may be dotted or nested."""
    found = []
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found += _overrides(value, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}={_text(value)}")
    return found


def _text(value: Any) -> str:
    if isinstance(value, str):
        return QuotedString(value, Quote.single).with_quotes()
    if isinstance(value, Sequence):
        return f"[{','.join(map(_text, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "{}" if isinstance(value, Mapping) else repr(value)


def _require_benchmark(name: str, arm: SuiteArmConfig, config: Config, base: Config) -> None:
    unfit = {
        "backend": (config.backend.name, "plain"),
        "cluster": (config.cluster.name, "local"),
        "monitor.every": (config.monitor.every, 0),
        "method": (config.method.name if config.hardens else "", ""),
    }
    if config.evaluation.variants or config.evaluation.judge.name != "phrases":
        raise ConfigError(
            f"arm {name}: evaluation.variants or evaluation.judge is set; a benchmark counts plain refusals, "
            "by evaluation.phrases. Keep checkpoints with suite.keep=true, and judge each by `neurofreeze evaluate`"
        )
    for key, (found, expected) in unfit.items():
        if found != expected:
            raise ConfigError(
                f"arm {name}: {key} is {found!r}; a benchmark trains each cell in one process of this machine, by "
                f"methods that keep refusals rather than teach them{f': expected {expected!r}' if expected else ''}"
            )
    for key, value in vars(config.data).items():
        if key not in _OWN_DATA and value != getattr(base.data, key):
            raise ConfigError(
                f"arm {name}: data.{key} is {value!r}, for other arms {getattr(base.data, key)!r}; arms are trained "
                f"and measured on the same data, and may differ in {', '.join(f'data.{own}' for own in _OWN_DATA)}"
            )
    for key in _OF_ALL:
        own, of_others = attrgetter(key)(config), attrgetter(key)(base)
        if own != of_others:
            raise ConfigError(
                f"arm {name} has other settings of {key} than the others; all start from one checkpoint and are "
                "measured alike, so give it to all arms, on the command line or in suite.settings"
            )
    if config.training.save_steps:
        raise ConfigError(
            f"arm {name}: training.save_steps is {config.training.save_steps}; expected 0, since a cell that is "
            "interrupted is trained anew: what was measured on its way is in no checkpoint"
        )
