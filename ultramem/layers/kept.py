"""What follows from parameters alone is computed once in inference, not at every token."""

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Kept(Generic[T]):
    """A value computed from parameters, kept while they stay the same and no gradient is wanted.

    A change in place is seen by the parameters' version counters, as are other tensors in their stead. Only writes
    through ``parameter.data`` leave no trace: call `drop` after them. With gradients, in a compiled graph, and for
    parameters made in inference mode, which have no version, the value is computed at every call.

    Example:
        >>> weight, double = torch.nn.Parameter(torch.ones(2)), Kept()
        >>> with torch.no_grad():
        ...     first = double(lambda: weight * 2, weight)
        ...     again = double(lambda: weight * 2, weight)
        ...     _ = weight.add_(1)
        ...     changed = double(lambda: weight * 2, weight)
        >>> first is again, changed
        (True, tensor([4., 4.]))
    """

    def __init__(self) -> None:
        self.drop()

    def drop(self) -> None:
        """Forgets the value."""
        self._key: tuple | None = None
        self.value: T | None = None

    def __call__(self, compute: Callable[[], T], *parameters: Tensor, dtype: torch.dtype | None = None) -> T:
        """The value of ``compute``, which reads the parameters and may depend on the dtype."""
        if torch.compiler.is_compiling():
            return compute()
        if torch.is_grad_enabled() or any(parameter.is_inference() for parameter in parameters):
            self.drop()
            return compute()
        key = (dtype, *((parameter.data_ptr(), parameter._version) for parameter in parameters))
        if self.value is None or key != self._key:
            self._key, self.value = key, compute()
        return self.value
