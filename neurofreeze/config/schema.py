"""The dataclass schema of conf/: every setting with its type and range. Imports no torch: errors must come fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from neurofreeze.config.backend import BackendConfig
from neurofreeze.config.budget import BudgetConfig
from neurofreeze.config.checks import check
from neurofreeze.config.cluster import ClusterConfig
from neurofreeze.config.freeze import FreezeConfig
from neurofreeze.config.judge import JudgeConfig
from neurofreeze.config.objectives import AnchorConfig, ReplayConfig
from neurofreeze.config.safeneuron import PreferencesConfig, SafeNeuronConfig
from neurofreeze.config.tracker import MonitorConfig, TrackerConfig
from neurofreeze.evaluation.phrases import phrase_list
from neurofreeze.evaluation.variants import variants

# OmegaConf reads annotations at run time, hence Optional[...] instead of X | None on Python 3.10.


@dataclass
class DataConfig:
    """Where prompts come from: `bundled:<set>/<split>`, a file, or a hub id."""

    train: str = "bundled:retail_bank/train"
    holdout: Optional[str] = None  # null: the evaluation split of a bundled set, else a tenth of `train`
    safety: str = "bundled:harmful/calibration"
    utility: str = "bundled:instructions/calibration"
    harmful: str = "bundled:harmful/evaluation"
    lookalikes: str = "bundled:lookalikes/evaluation"
    general: str = "bundled:instructions/evaluation"
    replay: list[str] = field(default_factory=lambda: ["bundled:harmful/align", "bundled:lookalikes/align"])
    alignment: list[str] = field(
        default_factory=lambda: ["bundled:harmful/align", "bundled:lookalikes/align", "bundled:instructions/align"]
    )
    preferences: PreferencesConfig = field(default_factory=PreferencesConfig)


@dataclass
class TrainingConfig:
    """Supervised fine-tuning with TRL's SFTTrainer; loss on the answers only."""

    steps: Optional[int] = None  # optimizer steps; null: `epochs` passes over the data
    epochs: float = 1.0
    batch_size: int = 8  # examples of a micro-batch, of all ranks together; each takes its share
    gradient_accumulation: int = 1
    learning_rate: float = 5e-5
    scheduler: str = "constant_with_warmup"
    warmup_steps: int = 2
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    max_length: int = 128
    optimizer: str = "adamw_torch_fused"
    bf16: str = "auto"  # autocast: auto, true or false; weights and optimizer state stay float32
    gradient_checkpointing: bool = False
    save_steps: int = 0  # checkpoint every so many steps; 0: only when interrupted
    check_every: int = 0  # check the frozen elements every so many steps; 0: at saves and at the end
    enforcement: str = "auto"  # mask: masked gradients; selective: selective layers; auto: what costs less
    frozen_times: float = 1.0  # how many times as many steps, or epochs, frozen arms take as the one without a mask

    def __post_init__(self) -> None:
        check(self.steps is None or self.steps > 0, "training.steps", self.steps, "a positive number or null")
        positive = ("epochs", "batch_size", "gradient_accumulation", "learning_rate", "max_length", "max_grad_norm")
        for name in (*positive, "frozen_times"):
            check(getattr(self, name) > 0, f"training.{name}", getattr(self, name), "a number above 0")
        for name in ("warmup_steps", "weight_decay", "save_steps", "check_every"):
            check(getattr(self, name) >= 0, f"training.{name}", getattr(self, name), "a number not below 0")
        self.bf16 = self.bf16.lower()  # what YAML takes for a truth value comes as "True" or "False"
        check(self.bf16 in ("auto", "true", "false"), "training.bf16", self.bf16, "auto, true or false")
        known = ("auto", "mask", "selective")
        check(self.enforcement in known, "training.enforcement", self.enforcement, "auto, mask or selective")


@dataclass
class AlignmentConfig:
    """A short safety fine-tune before everything else, for models that do not refuse as shipped."""

    mode: str = "auto"  # auto: only if the model refuses fewer than `threshold` of the calibration requests
    threshold: float = 0.5
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        check(self.mode in ("auto", "always", "never"), "alignment.mode", self.mode, "auto, always or never")
        check(0 < self.threshold <= 1, "alignment.threshold", self.threshold, "a number in (0, 1]")


@dataclass
class StrategyConfig:
    """How neurons are scored: a name in neurofreeze.strategies.STRATEGIES, and its options."""

    name: str = "wifv"
    options: dict[str, Any] = field(default_factory=dict)
    method: str = "ssah"  # what method=auto stands for
    threshold: float = 0.0  # what method.threshold=null stands for
    batch_size: int = 8
    max_length: int = 512


@dataclass
class RatiosConfig:
    """SSAH's group sizes, as shares of all neurons; complex units are what is left."""

    exclusive_safety: float = 0.015
    exclusive_utility: float = 0.14
    redundant: float = 0.14


# Methods that teach refusals rather than keep them, and their arms: the method's own first, which has a mask.
HARDENING = {
    "nest": ("nest", "full", "lora"),
    "budget": ("budget", "random", "full"),
    "safeneuron": ("safeneuron", "dpo"),
}
# What they train on, where it is not data.alignment, so that the model may be aligned first.
TRAINED_ON = {"safeneuron": "preferences"}
METHODS = ("auto", "ssah", "top", "above", "difference", *HARDENING)


@dataclass
class ToleranceConfig:
    """By how much, in nats, pruning a group may worsen the mean of what the group must spare."""

    margin: float = 0.5  # fall of the refusal margin
    loss: float = 0.1  # rise of the loss per token on utility data

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check(value >= 0, f"method.tolerance.{name}", value, "a number of nats not below 0")


@dataclass
class LearningRatesConfig:
    """Of the arms of method=nest, in place of training.learning_rate."""

    nest: float = 2e-2
    full: float = 1e-4
    lora: float = 2e-3

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check(value > 0, f"method.nest.learning_rates.{name}", value, "a number above 0")


@dataclass
class NestConfig:
    """NeST: update vectors for clusters of the rows of gate_proj and up_proj that recognise harm."""

    threshold: float = 3.0  # z-score of a row's weight in its projection's probe
    probe: dict[str, Any] = field(default_factory=dict)  # options of strategy=probe
    share: bool = True  # false: a vector for every row, not for every cluster
    clusters: int = 10  # of a projection, at most
    standardize: bool = True  # cluster activation profiles by shape, without their mean and spread
    benign_share: float = 0.67  # of benign answers among what is trained on
    learning_rates: LearningRatesConfig = field(default_factory=LearningRatesConfig)
    lora_rank: int = 8

    def __post_init__(self) -> None:
        check(self.threshold >= 0, "method.nest.threshold", self.threshold, "a number not below 0")
        check(self.clusters > 1, "method.nest.clusters", self.clusters, "a number above 1; share=false for none")
        check(0 <= self.benign_share < 1, "method.nest.benign_share", self.benign_share, "a number in [0, 1)")
        check(self.lora_rank > 0, "method.nest.lora_rank", self.lora_rank, "a positive number")


@dataclass
class MethodConfig:
    """How scores become the choice of neurons to freeze; under nest, of rows to train; under budget, of neurons to."""

    name: str = "auto"  # auto: the strategy's own
    ratios: RatiosConfig = field(default_factory=RatiosConfig)  # ssah, budget
    # ssah: ESU and CU up to `fraction`; esu_top_cu: ESU and `top_cu`; esu_all_cu: both; all_but_ru, all_but_euu
    freeze: str = "fraction"
    top_cu: float = 0.06  # of all neurons of a kind, taken from CU
    search: bool = False  # ssah: find the ratios by pruning on the calibration sets, in place of `ratios`
    grid: list[float] = field(default_factory=lambda: [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2])
    tolerance: ToleranceConfig = field(default_factory=ToleranceConfig)  # of the search
    search_prompts: Optional[int] = 64  # how many of each calibration set the search prunes on; null: all
    per: str = "kind"  # top, difference: what is ranked together, kind, layer, site or model
    threshold: Optional[float] = None  # above: the score to exceed; null: the strategy's own
    minus: float = 0.15  # difference: share of neurons, those that utility needs most, to leave out
    nest: NestConfig = field(default_factory=NestConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    safeneuron: SafeNeuronConfig = field(default_factory=SafeNeuronConfig)

    def __post_init__(self) -> None:
        check(self.name in METHODS, "method.name", self.name, f"one of {', '.join(METHODS)}")
        check(self.per in ("kind", "layer", "site", "model"), "method.per", self.per, "kind, layer, site or model")
        known = ("fraction", "esu_top_cu", "esu_all_cu", "all_but_ru", "all_but_euu")
        check(self.freeze in known, "method.freeze", self.freeze, f"one of {', '.join(known)}")
        check(0 < self.top_cu <= 1, "method.top_cu", self.top_cu, "a number in (0, 1]")
        check(0 < self.minus <= 1, "method.minus", self.minus, "a number in (0, 1]")
        growing = all(a < b for a, b in zip([0.0, *self.grid], [*self.grid, 1.0], strict=True))
        check(bool(self.grid) and growing, "method.grid", self.grid, "growing ratios between 0 and 1")
        # So that all three groups have room, whatever is found for the first two.
        check(self.grid[0] < 1 / 3, "method.grid", self.grid, "a smallest ratio below a third")
        enough = self.search_prompts is None or self.search_prompts > 1
        check(enough, "method.search_prompts", self.search_prompts, "a number above 1 or null")


@dataclass
class EvaluationConfig:
    """How safety and utility are measured."""

    phrases: str = "strict-opening"
    max_new_tokens: int = 20
    batch_size: int = 32
    limit: Optional[int] = None  # prompts of each set; null: all
    variants: list[str] = field(default_factory=list)  # other ways to ask for harm; see neurofreeze.evaluation.variants
    judge: JudgeConfig = field(default_factory=JudgeConfig)  # of the answers to them, and without them to data.harmful

    def __post_init__(self) -> None:
        variants(self.variants)
        for name in ("max_new_tokens", "batch_size"):
            check(getattr(self, name) > 0, f"evaluation.{name}", getattr(self, name), "a positive number")
        check(self.limit is None or self.limit > 0, "evaluation.limit", self.limit, "a positive number or null")
        # Two tokens a word, or every answer would be short of what the list counts as a refusal.
        least = 2 * phrase_list(self.phrases).least
        expected = f"at least {least} with phrases={self.phrases}"
        check(self.max_new_tokens >= least, "evaluation.max_new_tokens", self.max_new_tokens, expected)


@dataclass
class ValidateConfig:
    """Checks of the choice of neurons, before anything is trained, and of what fine-tuning did to it."""

    # prune: run the model without the chosen neurons, and without random ones; see what happens to refusals
    # groups: without each of SSAH's groups, and without random ones of its size
    mode: str = "none"
    draws: int = 3  # random masks with as many neurons
    migration: bool = False  # which neurons of each arm are in another of SSAH's groups than before fine-tuning
    splits: int = 0  # times to choose again on random halves of the calibration sets, to see how much overlaps

    def __post_init__(self) -> None:
        check(self.mode in ("none", "prune", "groups"), "validate.mode", self.mode, "none, prune or groups")
        check(self.splits >= 0, "validate.splits", self.splits, "a number not below 0")
        check(self.draws > 0, "validate.draws", self.draws, "a positive number")


ARMS = ("none", "random", "safety")
UNFROZEN_ARMS = ("none", "full", "lora", "dpo")  # have no mask, so that there is nothing to verify


@dataclass
class Config:
    """A whole run."""

    name: str = "quickstart"
    model: str = "smollm2-135m-instruct"
    revision: Optional[str] = None
    seed: int = 0
    fraction: float = 0.15  # share of neurons to freeze, of each kind
    granularity: str = "head"
    arms: list[str] = field(default_factory=lambda: list(ARMS))
    overwrite: bool = False  # redo stages that are complete with other settings
    data: DataConfig = field(default_factory=DataConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    freeze: FreezeConfig = field(default_factory=FreezeConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    anchor: AnchorConfig = field(default_factory=AnchorConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    validate: ValidateConfig = field(default_factory=ValidateConfig)
    backend: BackendConfig = field(default_factory=BackendConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    objective: Optional[str] = None  # what a sweep optimises: a number in result.json, such as safety.refusals

    def __post_init__(self) -> None:
        check(bool(self.model), "model", self.model, "a checkpoint folder, a GGUF file, a hub id or a short name")
        check(0 < self.fraction <= 1, "fraction", self.fraction, "a number in (0, 1]")
        check(self.granularity in ("head", "channel"), "granularity", self.granularity, "head or channel")
        known = HARDENING.get(self.method.name, ARMS)
        check(bool(self.arms) and set(self.arms) <= set(known), "arms", self.arms, f"one or more of {list(known)}")
        check(len(set(self.arms)) == len(self.arms), "arms", self.arms, "each arm once")
        check(self.seed >= 0, "seed", self.seed, "a number not below 0")
        method = self.strategy.method if self.method.name == "auto" else self.method.name
        check(method == "ssah" or not self.method.search, "method.search", True, f"false, since method is {method}")
        by_fraction = method == "ssah" or self.method.freeze == "fraction"
        check(by_fraction, "method.freeze", self.method.freeze, f"fraction, since method is {method}")
        grouped = method == "ssah" or (self.validate.mode != "groups" and not self.validate.migration)
        key = "validate.mode" if self.validate.mode == "groups" else "validate.migration"
        check(grouped, key, "groups" if key == "validate.mode" else True, f"no groups, since method is {method}")
        backend, ranks = self.backend.name, self.cluster.ranks
        check(backend != "plain" or ranks == 1, "backend", backend, f"ddp, fsdp2 or zero1 to zero3 for {ranks} ranks")
        sizes = {"training.batch_size": self.training.batch_size}
        if self.alignment.mode != "never":
            sizes["alignment.training.batch_size"] = self.alignment.training.batch_size
        for key, size in sizes.items():
            check(size % ranks == 0, key, size, f"a multiple of the number of ranks, which is {ranks}")
        if self.method.name == "nest":
            whole = backend in ("plain", "ddp", "zero1", "zero2") or "nest" not in self.arms
            check(whole, "backend", backend, "ddp, zero1 or zero2: update vectors need whole weights on each rank")
        if self.method.name == "safeneuron":
            check(backend == "plain", "backend", backend, "plain: preference training is verified in one process only")
            how = self.training.enforcement
            check(how != "selective", "training.enforcement", how, "auto or mask, which preference training has")
        sets = self.data.replay
        check(bool(sets) or not self.replays, "data.replay", sets, "at least one set, for replay or anchor to hold")
        if self.hardens:
            for name in ("replay", "anchor"):
                weight = getattr(self, name).weight
                check(weight == 0, f"{name}.weight", weight, f"0, since method={self.method.name} teaches refusals")
            of = f"since method={self.method.name}"
            own = self.method.name == "safeneuron"
            why = "freezes and prunes neurons in its own way" if own else "freezes no choice"
            times = self.training.frozen_times
            check(times == 1, "training.frozen_times", times, f"1, {of} compares arms of equal length")
            kinds = self.freeze.kinds
            check(not kinds, "freeze.rest", ", ".join(kinds), f"train for every kind, {of} {why}")
            mode, checks = self.alignment.mode, self.validate
            aligns = self.trained_on != "alignment" or mode == "never"
            check(aligns, "alignment.mode", mode, f"never, {of} trains on data.alignment itself")
            check(checks.mode == "none", "validate.mode", checks.mode, f"none, {of} {why}")
            check(checks.splits == 0, "validate.splits", checks.splits, f"0, {of} {why}")

    @property
    def trained_on(self) -> str:
        """The role of the examples that arms are trained on."""
        return TRAINED_ON.get(self.method.name, "alignment") if self.hardens else "train"

    @property
    def replays(self) -> bool:
        """Whether training needs data.replay."""
        return self.replay.weight > 0 or self.anchor.weight > 0

    @property
    def hardens(self) -> bool:
        """Whether the run teaches refusals, rather than keeping them while it trains on data.train."""
        return self.method.name in HARDENING
