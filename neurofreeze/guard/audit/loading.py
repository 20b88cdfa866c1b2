"""Loading what an intervention puts in the original's place: a checkpoint, or an adapter on a second copy of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neurofreeze.errors import ConfigError, ModelError
from neurofreeze.models.load import load_model

ADAPTER = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def load_tuned(folder: Path) -> Any:
    """The checkpoint in `folder`, in evaluation mode.

    Raises:
        ModelError: if it cannot be loaded, or its weights are not safetensors.
    """
    return load_model(folder).eval()


def load_adapted(folder: Path, base: Path) -> Any:
    """The checkpoint in `base` with the PEFT adapter in `folder`, not merged, in evaluation mode.

    Raises:
        ConfigError: if PEFT is not installed.
        ModelError: if the adapter cannot be loaded, is not safetensors, or makes prompts longer.
    """
    require_adapter(folder)
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise ConfigError("intervention=adapter needs PEFT; pip install 'neurofreeze[lora]'") from error
    try:
        config = PeftConfig.from_pretrained(str(folder))
        if config.is_prompt_learning:
            raise ModelError(
                f"{folder} has a {config.peft_type} adapter; expected one that changes layers, as LoRA does"
            )
        return PeftModel.from_pretrained(load_model(base), str(folder)).eval()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelError(f"the adapter in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error


def require_adapter(folder: Path) -> Path:
    """`folder` if it holds an adapter in safetensors.

    Raises:
        ModelError: if not; PEFT would unpickle an adapter_model.bin.
    """
    for name in (CONFIG, ADAPTER):
        if not (folder / name).is_file():
            raise ModelError(f"no {name} in {folder}; expected the folder of a PEFT adapter with safetensors weights")
    return folder
