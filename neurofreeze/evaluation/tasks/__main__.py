"""`python -m neurofreeze.evaluation.tasks` prints the folder that `lm_eval --include_path` takes."""

from __future__ import annotations

from neurofreeze.evaluation.tasks import FOLDER

print(FOLDER)
