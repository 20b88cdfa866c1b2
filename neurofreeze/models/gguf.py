"""GGUF files become ordinary safetensors checkpoints, dequantized to bfloat16, once per file."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from neurofreeze.cache import cache_folder
from neurofreeze.errors import ModelError


def unpack(path: Path) -> Path:
    """Folder in the cache with the dense checkpoint and tokenizer of the GGUF file at `path`.

    Raises:
        ModelError: if transformers cannot read the file.
    """
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _digest(file)
    folder = cache_folder() / "models" / f"{path.stem.lower()}-{sha256.hexdigest()[:12]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            _convert(path, Path(temporary) / "model")
            shutil.move(Path(temporary) / "model", folder)
    return folder


def _convert(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        loaded = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path} cannot be read as a GGUF model: {str(error).splitlines()[0]}") from error
    # transformers refuses to save a model that it loaded from GGUF, so its weights move to a plain one.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _digest(file: Any) -> Any:  # Python 3.10 has no hashlib.file_digest
    sha256 = hashlib.sha256()
    while block := file.read(1 << 20):
        sha256.update(block)
    return sha256
