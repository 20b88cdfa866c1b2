"""A checkpoint's tensors under the names and in the shapes of the model's own parameters.

transformers keeps the experts of a layer in one parameter and writes them one by one ("experts.3.w1.weight"), and may
write other parameters under other names. What becomes of each is read from transformers' own table of conversions, the
one that `from_pretrained` follows; a stack is assembled when it is asked for.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple

from neurofreeze.errors import ModelError

if TYPE_CHECKING:
    import torch

    from neurofreeze.checkpoints import Weights

Sources = Mapping[str, list[str]]  # source pattern of a converter -> the tensors of the checkpoint that it matches


class Conversion(NamedTuple):
    """How one or more parameters are made of tensors with other names."""

    target: str
    converter: Any
    sources: Sources


class Parameters:
    """Parameters by the model's names, each read or assembled when asked for.

    Tensors that are no parameter of the model, say a value head, keep the names they have.

    Args:
        stored: the checkpoint's tensors.
        model: a transformers model, which needs no storage.
        where: the checkpoint, for messages.

    Raises:
        ModelError: if two tensors are one parameter, or a stack of experts is incomplete.
    """

    def __init__(self, stored: Weights, model: Any, where: str) -> None:
        self._stored = stored
        self._model = model
        self._where = where
        self._same: dict[str, str] = {}  # name -> that of the tensor in the checkpoint
        self._made: dict[str, tuple[Conversion, tuple[int, ...]]] = {}  # name -> how, and its shape
        for conversion in self._rename():
            self._require_complete(conversion)
            for name, tensor in self._convert(conversion, stored.empty).items():
                self._require_new(name, conversion.target)
                self._made[name] = conversion, tuple(tensor.shape)

    def __contains__(self, name: str) -> bool:
        return name in self._same or name in self._made

    def __iter__(self) -> Iterator[str]:
        yield from self._same
        yield from self._made

    def shape(self, name: str) -> tuple[int, ...]:
        """The parameter's shape; nothing is read but headers."""
        return self._made[name][1] if name in self._made else self._stored.shape(self._same[name])

    def dtypes(self, name: str) -> set[str]:
        """The precisions of the tensors that the parameter is made of, as in `Weights.dtype`."""
        made = self._made[name][0].sources.values() if name in self._made else [[self._same[name]]]
        return {self._stored.dtype(tensor) for tensors in made for tensor in tensors}

    def lazy(self, name: str) -> Any:
        """The parameter, of which only what is indexed is read, unless it has to be assembled."""
        return self[name] if name in self._made else self._stored.lazy(self._same[name])

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self._made:
            return self._convert(self._made[name][0], self._stored.__getitem__)[name]
        return self._stored[self._same[name]]

    def _rename(self) -> list[Conversion]:
        """Sort the checkpoint's tensors into those that only need their name and those that need more."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

        transforms = get_model_conversion_mapping(self._model)
        renamings = [found for found in transforms if isinstance(found, WeightRenaming)]
        converters = [found for found in transforms if isinstance(found, WeightConverter)]
        by_pattern = {pattern: found for found in converters for pattern in found.source_patterns}
        own = self._model.state_dict()
        sources: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for tensor in sorted(self._stored, key=dot_natural_key):
            name, pattern = rename_source_key(tensor, renamings, converters, self._model.base_model_prefix, own)
            if pattern is None:
                self._require_new(name, tensor)
                self._same[name] = tensor
            else:
                sources[name][pattern].append(tensor)
        return [Conversion(target, by_pattern[next(iter(found))], found) for target, found in sources.items()]

    def _convert(self, conversion: Conversion, read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
        # A converter keeps the tensors that it is given.
        converter = deepcopy(conversion.converter)
        for pattern, tensors in conversion.sources.items():
            for tensor in tensors:
                converter.add_tensor(conversion.target, tensor, pattern, read(tensor))
        found = converter.convert(conversion.target, model=self._model, config=self._model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in found.items()}

    def _require_complete(self, conversion: Conversion) -> None:
        count = max(len(tensors) for tensors in conversion.sources.values())
        for pattern in conversion.converter.source_patterns:
            tensors = conversion.sources.get(pattern, [])
            numbers = [_number(pattern, tensor) for tensor in tensors]
            if "*" in pattern and numbers != list(range(count)):
                raise ModelError(
                    f"{self._where} has {pattern.lstrip('.')} with the numbers {numbers} for {conversion.target}; "
                    f"expected 0 to {count - 1}, each once"
                )
            shapes = {self._stored.shape(tensor) for tensor in tensors}
            if len(shapes) > 1:
                raise ModelError(
                    f"{self._where} has {pattern.lstrip('.')} with the shapes {sorted(shapes)} for "
                    f"{conversion.target}; expected one shape"
                )

    def _require_new(self, name: str, tensor: str) -> None:
        if name in self:
            raise ModelError(f"{self._where} has two tensors for the parameter {name}, one of them {tensor}")


def _number(pattern: str, tensor: str) -> int | None:
    """What stands in the place of the pattern's `*`."""
    found = re.search(pattern.replace("*.", r"(\d+)\."), tensor)
    return int(found.group(1)) if found and found.groups() else None
