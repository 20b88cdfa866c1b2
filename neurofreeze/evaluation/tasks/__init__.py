"""Tasks for lm-evaluation-harness on the bundled evaluation sets: `lm_eval --include_path FOLDER`."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
