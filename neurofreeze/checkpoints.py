"""Reading the safetensors weights of a Hugging Face checkpoint folder one parameter at a time, sharded or not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurofreeze.errors import ModelError

if TYPE_CHECKING:
    import torch

    from neurofreeze.conversion import Parameters

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"


class Weights:
    """Tensors by name; each is read from its file when asked for."""

    def __init__(self, files: dict[str, Any]) -> None:
        self._files = files

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, from the file's header."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """The tensor's precision as the file's header says it: F64, F32, BF16, F16 ..."""
        return str(self._files[name].get_slice(name).get_dtype())

    def empty(self, name: str) -> torch.Tensor:
        """A tensor of this shape without storage."""
        import torch

        return torch.empty(self.shape(name), device="meta")

    def lazy(self, name: str) -> Any:
        """The tensor, of which only what is indexed is read."""
        return self._files[name].get_slice(name)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._files[name].get_tensor(name)


@contextmanager
def open_weights(folder: str | Path) -> Iterator[Weights]:
    """Open the checkpoint in `folder`; files stay open, memory-mapped, until the block ends.

    Raises:
        ModelError: if there are no safetensors weights, a shard is missing or unreadable, a tensor is in two of them,
            or there is an adapter, with which other weights would be loaded.
    """
    from safetensors import SafetensorError, safe_open

    folder = Path(folder)
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for path in _shards(folder):
            try:
                opened = stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise ModelError(f"{path} is not a readable safetensors file: {error}") from error
            again = sorted(files.keys() & set(opened.keys()))
            if again:
                raise ModelError(f"{path} has {again[0]}, which another file of {folder} has too; expected each once")
            files |= dict.fromkeys(opened.keys(), opened)
        yield Weights(files)


@contextmanager
def open_parameters(folder: str | Path, config: Any) -> Iterator[Parameters]:
    """Open the checkpoint in `folder` under the names and shapes of the model of `config`, whatever it was saved as.

    Raises:
        ModelError: as `open_weights`; if tensors cannot be told apart, or a stack of experts is incomplete.
        ArchitectureError: if transformers has no such model.
    """
    from neurofreeze.conversion import Parameters
    from neurofreeze.reader import on_meta

    with open_weights(folder) as stored:
        yield Parameters(stored, on_meta(config), str(folder))


def stamps(folder: Path) -> list[list[Any]]:
    """Name, size and time of writing of each file of weights: what tells a checkpoint from another in its place."""
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(folder.glob("*.safetensors"))]


def read_config(folder: str | Path) -> Any:
    """The checkpoint's transformers config.

    Raises:
        ModelError: if there is none.
    """
    from transformers import AutoConfig

    if not (Path(folder) / "config.json").is_file():
        raise ModelError(f"no config.json in {folder}; expected a checkpoint folder")
    return AutoConfig.from_pretrained(folder)


def _shards(folder: Path) -> list[Path]:
    if (folder / ADAPTER).is_file():
        raise ModelError(
            f"{folder} has an {ADAPTER}: from there transformers loads the base that it names, with the adapter, "
            "whatever other weights there are. Merge the adapter and save the result into a folder of its own"
        )
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise ModelError(f"no {SINGLE} or {INDEX} in {folder}; expected a checkpoint folder with safetensors weights")
    try:
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
        outside = any(Path(name).name != name for name in names)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{folder / INDEX} is not a safetensors index: {error!r}") from error
    if outside:
        raise ModelError(f"{folder / INDEX} names files outside its folder")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder} lacks {', '.join(missing)}, which its index names")
    return [folder / name for name in names]
