"""The data sets of a run by the role they play, read once and checked to be disjoint."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields

from neurofreeze.config.schema import DataConfig
from neurofreeze.data import Example, digest, read, require_disjoint
from neurofreeze.data.bundled import PREFIX
from neurofreeze.data.preferences import About, Preference, read_preferences
from neurofreeze.errors import DataError

_HOLDOUT_SHARE = 10
_TRAINING = ("alignment", "replay", "preferences")  # may share prompts with each other


@dataclass(frozen=True)
class Datasets:
    """Examples by role; see DataConfig."""

    train: list[Example]
    holdout: list[Example]
    safety: list[Example]
    utility: list[Example]
    harmful: list[Example]
    lookalikes: list[Example]
    general: list[Example]
    alignment: list[Example]
    replay: list[Example]
    preferences: list[Preference]

    @classmethod
    def read(
        cls,
        config: DataConfig,
        *,
        align: bool,
        replay: bool,
        replay_answers: bool = True,
        preferences: bool = False,
        limit: int | None,
        seed: int,
    ) -> Datasets:
        """Read every set.

        Args:
            config: the sources.
            align: whether the alignment set is needed.
            replay: whether the replay set is needed.
            replay_answers: whether it needs answers, which an anchor does without.
            preferences: whether preference pairs are needed.
            limit: rows of each evaluation set, None for all.
            seed: of the split of `train` where there is no set to hold out.

        Raises:
            DataError: if a set cannot be read, or a prompt occurs in two roles.
        """
        train, holdout = _train_and_holdout(config, seed)
        found = cls(
            train=train,
            holdout=holdout[:limit],
            safety=read(config.safety),
            utility=read(config.utility),
            harmful=read(config.harmful, responses=False, limit=limit),
            lookalikes=read(config.lookalikes, responses=False, limit=limit),
            general=read(config.general, limit=limit),
            alignment=[e for source in config.alignment for e in read(source)] if align else [],
            replay=[e for source in config.replay for e in read(source, responses=replay_answers)] if replay else [],
            preferences=_preferences(config) if preferences else [],
        )
        # What a model was aligned on may well be replayed, or be among the pairs; nothing else may share a prompt.
        for one in _TRAINING:
            others = set(_TRAINING) - {one}
            require_disjoint({f"data.{name}": rows for name, rows in found.roles().items() if name not in others})
        return found

    def roles(self) -> dict[str, Sequence[Example]]:
        """Role -> examples, without roles that are not used."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name)}

    def digests(self, *roles: str) -> dict[str, str]:
        """Role -> digest of its prompts and answers."""
        return {role: digest(getattr(self, role)) for role in roles}


def holdout_source(config: DataConfig) -> str | None:
    """Where the held-out domain examples come from; None if they are split off from `train`."""
    if config.holdout is None and config.train.startswith(PREFIX):
        return f"{config.train.partition('/')[0]}/evaluation"
    return config.holdout


def _preferences(config: DataConfig) -> list[Preference]:
    sources: dict[About, list[str]] = {
        "safety": config.preferences.safety,
        "helpfulness": config.preferences.helpfulness,
    }
    return [pair for about, own in sources.items() for source in own for pair in read_preferences(source, about)]


def _train_and_holdout(config: DataConfig, seed: int) -> tuple[list[Example], list[Example]]:
    train = read(config.train)
    if source := holdout_source(config):
        return train, read(source)
    # Equal prompts stay on one side, or the holdout would not be disjoint from training.
    keys = list(dict.fromkeys(example.key for example in train))
    if len(keys) < _HOLDOUT_SHARE:
        raise DataError(
            f"{config.train} has {len(keys)} different prompts, too few to hold a tenth of them out; pass "
            "data.holdout=FILE"
        )
    random.Random(seed).shuffle(keys)
    held = set(keys[: len(keys) // _HOLDOUT_SHARE])
    return [e for e in train if e.key not in held], [e for e in train if e.key in held]
