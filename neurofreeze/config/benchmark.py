"""The settings of `neurofreeze benchmark`: arms, seeds and fine-tuning sets, over the settings of an ordinary run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neurofreeze.config.checks import check
from neurofreeze.errors import ConfigError


@dataclass
class SuiteArmConfig:
    """One way to fine-tune, by what differs from the settings that all arms share."""

    settings: dict[str, Any] = field(default_factory=dict)  # of a run, such as {strategy: margin, fraction: 0.72}
    freeze: str = "none"  # safety: what strategy and method choose; random: as many others, anew for each seed
    times: float = 1.0  # as many steps, or epochs, as the other arms
    lora_rank: Optional[int] = None  # train adapters of this rank in place of the weights

    def __post_init__(self) -> None:
        check(self.freeze in ("none", "random", "safety"), "freeze", self.freeze, "none, random or safety")
        check(self.times > 0, "times", self.times, "a number above 0")
        check(self.lora_rank is None or self.lora_rank > 0, "lora_rank", self.lora_rank, "a positive number or null")


@dataclass
class SuiteSetConfig:
    """One data set to fine-tune on."""

    train: Optional[str] = None  # null: data.train
    holdout: Optional[str] = None  # null: as data.holdout
    drop_refusals: bool = False  # leave out rows whose answer is a refusal by evaluation.phrases
    settings: dict[str, Any] = field(default_factory=dict)  # more of a run


@dataclass
class PromptsConfig:
    """How many rows of each evaluation set are used, drawn once for all cells; null: all."""

    harmful: Optional[int] = 80  # data.harmful, at every point
    holdout: Optional[int] = 32  # of the fine-tuning set, at every point
    elsewhere: Optional[int] = 60  # suite.elsewhere, at the end
    lookalikes: Optional[int] = 40  # data.lookalikes, at the end
    general: Optional[int] = 24  # data.general, at the end
    margin: Optional[int] = 24  # the first of those of `harmful`, for the refusal margin at the end

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check(value is None or value > 0, f"suite.prompts.{name}", value, "a positive number or null")


@dataclass
class SuiteConfig:
    """Arms x seeds x fine-tuning sets from one checkpoint."""

    arms: dict[str, Any] = field(default_factory=lambda: {"none": {}})  # name -> SuiteArmConfig
    only: list[str] = field(default_factory=list)  # the arms to run and compare; []: all
    sets: dict[str, Any] = field(default_factory=lambda: {"domain": {}})  # name -> SuiteSetConfig
    seeds: int = 8  # 0, 1, ...
    at: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.75, 1.0])  # shares of the steps at which to measure
    against: list[str] = field(default_factory=lambda: ["none"])  # arms that every other is compared with
    # The share of what arm against[0] learns by its end, at whose loss arms are compared; null: at the highest of the
    # arms' final losses, which all have reached.
    reach: Optional[float] = None
    elsewhere: Optional[str] = None  # harmful requests of another kind, a file or a hub id
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    settings: dict[str, Any] = field(default_factory=dict)  # of a run, for all arms; the command line comes over it
    keep: bool = False  # keep each fine-tuned checkpoint, in its cell's folder
    jobs: Optional[int] = None  # cells at a time; null: one a GPU, without any one a core
    threads: Optional[int] = None  # of each; null: its share of the cores

    def __post_init__(self) -> None:
        # Here, since OmegaConf takes no typed ones from the command line.
        self.arms = {name: _typed(SuiteArmConfig, given, f"suite.arms.{name}") for name, given in self.arms.items()}
        self.sets = {name: _typed(SuiteSetConfig, given, f"suite.sets.{name}") for name, given in self.sets.items()}
        check(bool(self.sets), "suite.sets", list(self.sets), "at least one fine-tuning set")
        for key in ("only", "against"):
            unknown = [name for name in getattr(self, key) if name not in self.arms]
            check(not unknown, f"suite.{key}", unknown, f"some of {', '.join(self.arms)}")
        for name in (*self.arms, *self.sets):
            plain = bool(name) and all(letter.isalnum() or letter in "-_." for letter in name) and name[0] != "."
            check(plain, "a name in suite", name, "letters, digits, '-', '_' and '.', since it names a folder")
        self.only = self.only or list(self.arms)
        missing = [name for name in self.against if name not in self.only]
        check(bool(self.against) and not missing, "suite.against", missing, f"some of suite.only, {self.only}")
        growing = all(0 < a < b for a, b in zip(self.at, self.at[1:], strict=False))
        check(growing and self.at[-1:] == [1.0], "suite.at", self.at, "growing shares in (0, 1] that end with 1.0")
        check(self.seeds > 0, "suite.seeds", self.seeds, "a positive number")
        check(self.reach is None or 0 < self.reach <= 1, "suite.reach", self.reach, "a share in (0, 1] or null")
        for name in ("jobs", "threads"):
            value = getattr(self, name)
            check(value is None or value > 0, f"suite.{name}", value, "a positive number or null")


@dataclass
class BenchmarkConfig:
    """`neurofreeze benchmark suite=NAME`; all other settings are those of a run."""

    name: str = MISSING
    suite: SuiteConfig = field(default_factory=SuiteConfig)


def _typed(schema: type[Any], given: Any, key: str) -> Any:
    if isinstance(given, schema):
        return given
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), given))
    except (OmegaConfBaseException, ConfigError) as error:
        raise ConfigError(f"{key}: {' '.join(str(error).split())}") from error
