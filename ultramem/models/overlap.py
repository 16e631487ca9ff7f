"""In inference on a GPU a memory unit runs beside the blocks that its skip spans (UltraMem, section 3.1)."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from ultramem.layers.memory import MemoryOutput, MemoryRead


class Running:
    """A memory unit under way: at once where it was started, or on a stream of its own.

    Args:
        unit: maps its input to its output, or to what its first phase read.
        hidden_states: the input.
        beside: run on another stream than what follows, which must not wait for it before `wait` is called.
    """

    def __init__(
        self, unit: Callable[[Tensor], MemoryOutput | MemoryRead], hidden_states: Tensor, *, beside: bool
    ) -> None:
        self._done: torch.cuda.Event | None = None
        if not beside:
            self._output = unit(hidden_states)
            return
        # Held until the unit is awaited: freed before, the input's memory would go to the next block's tensors.
        self._hidden_states = hidden_states
        side = _side_stream(hidden_states.device)
        side.wait_stream(torch.cuda.current_stream(hidden_states.device))
        with torch.cuda.stream(side):
            self._output = unit(hidden_states)
            self._done = side.record_event()

    def wait(self) -> MemoryOutput | MemoryRead:
        """What the unit returned; the current stream waits for it, the host does not."""
        if self._done is not None:
            torch.cuda.current_stream(self._hidden_states.device).wait_event(self._done)
        return self._output


def can_overlap(hidden_states: Tensor) -> bool:
    """Training keeps the plain order, which autograd and checkpointing know; a compiler makes its own.

    What other processes send is on its way beside the blocks all the same: `UltraMemModel.reads_ahead`.
    """
    return hidden_states.is_cuda and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
