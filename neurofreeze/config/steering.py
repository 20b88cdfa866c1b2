"""The settings of a steering vector, `steering`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from neurofreeze.config.checks import check

RECIPES = {"compliance": "pca", "json": "mean"}  # and the method that the paper takes
MIXES = ("none", "refuse", "same")


@dataclass
class SteeringConfig:
    """A vector that is found by a recipe, or read from a file."""

    recipe: str = "compliance"  # compliance or json
    method: Optional[str] = None  # pca or mean, the difference in means; null: the recipe's own
    mix: str = "none"  # BIND: what becomes of harmful requests; refuse: their positive side is a refusal; same
    layer: Optional[int] = None  # counted from 0; null: the middle one, of a file all that it has
    prompts: int = 100  # benign requests, and as many harmful ones if they are mixed in
    vector: Optional[str] = None  # a folder, repeng's .gguf or a .pt of steering-vectors, in place of a recipe
    unit: str = "norm"  # of strengths: the layer's mean hidden norm; raw: the vector's own length

    def __post_init__(self) -> None:
        check(self.recipe in RECIPES, "steering.recipe", self.recipe, f"one of {', '.join(RECIPES)}")
        check(self.method in (None, "pca", "mean"), "steering.method", self.method, "pca, mean or null")
        check(self.mix in MIXES, "steering.mix", self.mix, f"one of {', '.join(MIXES)}")
        signed = self.mix != "refuse" or self.method != "pca"
        check(signed, "steering.method", self.method, "mean, since PCA does not see which side of a pair refuses")
        check(self.layer is None or self.layer >= 0, "steering.layer", self.layer, "a layer from 0 on or null")
        check(self.prompts > 1, "steering.prompts", self.prompts, "a number above 1")
        check(self.unit in ("norm", "raw"), "steering.unit", self.unit, "norm or raw")

    @property
    def by(self) -> str:
        """The method, settled."""
        return self.method or ("mean" if self.mix == "refuse" else RECIPES[self.recipe])
