"""Operations on tensors: the steps of a memory layer, and of its optimizer, that are worth a kernel of their own.

Every operation is a folder: ``__init__.py`` holds its contract (a ``torch.library`` custom op with its fake and its
autograd), ``reference.py`` the plain PyTorch that is the truth, ``kernels.py`` the same in Triton. PyTorch's dispatcher
chooses by device.
"""

from ultramem.ops.causal_conv import causal_conv, causal_conv_step
from ultramem.ops.gather_dot import gather_dot
from ultramem.ops.lookup import lookup
from ultramem.ops.lookup.permutation import Placement, physical_rows
from ultramem.ops.lookup_step import lookup_step
from ultramem.ops.reference_mode import use_reference
from ultramem.ops.rescore import rescore
from ultramem.ops.row_adam import row_adam
from ultramem.ops.select_keys import select_keys

__all__ = [
    "Placement",
    "causal_conv",
    "causal_conv_step",
    "gather_dot",
    "lookup",
    "lookup_step",
    "physical_rows",
    "rescore",
    "row_adam",
    "select_keys",
    "use_reference",
]
