"""The lines of a parameter that train: taken out of it into a small tensor, and put back."""

from __future__ import annotations

import numpy as np
import torch

from neurofreeze.geometry import stack_shape
from neurofreeze.neurons import ELEMENTS, Selection


class Lines:
    """Rows (axis 0), columns (axis 1) or elements (axis 2) of a parameter, counted as in `Selection`.

    Their values are kept line by line: [lines, length of a line], and [lines] for a vector's rows and for elements.
    """

    def __init__(self, selection: Selection, shape: tuple[int, ...]) -> None:
        self.selection = selection
        self.shape = shape
        self._places: dict[torch.device, tuple[torch.Tensor, ...]] = {}

    @classmethod
    def without(cls, selection: Selection, shape: tuple[int, ...]) -> Lines:
        """All lines of a parameter but those of a selection."""
        matrices, rows, cols = stack_shape(shape)
        total = matrices * {0: rows, 1: cols, ELEMENTS: rows * cols}[selection.axis]
        return cls(Selection(selection.axis, np.setdiff1d(np.arange(total), selection.index)), shape)

    def __len__(self) -> int:
        return len(self.selection.index)

    def take(self, weight: torch.Tensor) -> torch.Tensor:
        """A copy of the lines' values."""
        return self._lines_first(weight.detach())[self.places(weight.device)].contiguous()

    def put_(self, weight: torch.Tensor, values: torch.Tensor) -> None:
        """Write the lines' values into the parameter itself, unseen by autograd."""
        # Through .data, or tensors saved for a backward pass would count as changed.
        self._put(weight.data, values.detach().to(weight.dtype))

    def put(self, weight: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """The parameter with these values in its lines, a new tensor; differentiable in `values`."""
        whole = weight.detach().clone()
        self._put(whole, values.to(weight.dtype))
        return whole

    def places(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Where the lines are, int64 tensors that index the parameter turned line by line."""
        if device not in self._places:
            axis, index = self.selection
            stacked = axis == 1 and len(self.shape) == 3
            found = np.divmod(index, self.shape[2]) if stacked else (index,)
            self._places[device] = tuple(torch.from_numpy(part).to(device) for part in found)
        return self._places[device]

    def _put(self, weight: torch.Tensor, values: torch.Tensor) -> None:
        places = self.places(weight.device)
        if len(places) > 1:
            self._lines_first(weight).index_put_(places, values)
        elif self.selection.axis == 1:
            # Not into the transposed weight: that takes several times as long.
            weight.index_copy_(1, places[0], values.T.contiguous())
        else:
            self._lines_first(weight).index_copy_(0, places[0], values)

    def _lines_first(self, weight: torch.Tensor) -> torch.Tensor:
        if self.selection.axis == ELEMENTS:
            return weight.view(-1)
        if self.selection.axis == 1:
            return weight.transpose(-1, -2)
        return weight.flatten(0, -2) if weight.dim() > 1 else weight
