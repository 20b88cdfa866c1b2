"""A shell script in the place of Python: what the launcher starts takes no time, and shows what it was given."""

from __future__ import annotations

from pathlib import Path


def interpreter(folder: Path, body: str) -> str:
    """The setting that selects it; called as `python -m neurofreeze.launcher.rank FOLDER`, so FOLDER is $3."""
    path = folder / "python"
    path.write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return f"cluster.python={path}"
