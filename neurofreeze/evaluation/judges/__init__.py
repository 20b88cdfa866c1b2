"""Whether an answer to a harmful request gave what was asked: phrase lists, classifiers, guard models, an endpoint."""

from neurofreeze.evaluation.judges.base import Judge, Verdict
from neurofreeze.evaluation.judges.loading import load_judge, require_judge

__all__ = ["Judge", "Verdict", "load_judge", "require_judge"]
