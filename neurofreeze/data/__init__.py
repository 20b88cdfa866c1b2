"""Prompts and answers: the bundled sets, files and hub data sets of users, and the check that splits are disjoint."""

from neurofreeze.data.examples import Example, digest
from neurofreeze.data.sources import read
from neurofreeze.data.splits import require_disjoint

__all__ = ["Example", "digest", "read", "require_disjoint"]
