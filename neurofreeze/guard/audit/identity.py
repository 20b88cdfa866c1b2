"""What tells a checkpoint from another in its place, without loading it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from neurofreeze.checkpoints import stamps

# Beside the weights, by what transformers names the files of its configs and tokenizers.
_CONFIGS = ("config.json", "generation_config.json")
_TOKENIZER = (
    "tokenizer*",
    "chat_template*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges*",
    "*.model",
)


def identity(folder: Path) -> dict[str, Any]:
    """What an audit knows a checkpoint by: its weights' stamps, and digests of what else decides its answers.

    Another chat template, vocabulary or end of turn asks another question, with the same weights.
    """
    found = sorted({path for pattern in _CONFIGS + _TOKENIZER for path in folder.glob(pattern) if path.is_file()})
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in found}
    return {"weights": stamps(folder), "files": digests}
