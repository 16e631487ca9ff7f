"""Which parameter is decayed, which is not, and which belongs to a table.

One call serves any training loop: `torch.optim.AdamW(parameter_groups(model, ...))`.
"""

from typing import Any

from torch import nn

from ultramem.layers.query import CausalConv, Keys, Query
from ultramem.layers.retrieval import TuckerRetrieval
from ultramem.layers.tables import Table

# What a memory layer calibrates at the start, whatever its dimensions: decay would undo it.
_UNDECAYED = {Query: "norm_weight", Keys: "norm_weight", CausalConv: "weight", TuckerRetrieval: "cores"}


def parameter_groups(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    table_weight_decay: float = 0.0,
    table_multiplier: float = 1.0,
) -> list[dict[str, Any]]:
    """Sort a model's trainable parameters into optimizer groups named "matrices", "vectors" and "tables".

    Tables are recognised by their class, never by name, so the call is right for any model that holds our layers.
    Parameters with one dimension or none (norms, biases) are not decayed, nor are a memory layer's norms, convolution
    and Tucker cores. Groups without parameters are left out.

    Args:
        model: any module.
        learning_rate: of matrices and vectors.
        weight_decay: of matrices; vectors have none.
        table_weight_decay: of tables. Decay would pull at every row, also at those that no token reads.
        table_multiplier: the tables' learning rate in multiples of ``learning_rate``; `ultramem.optim.TableMultiplier`
            is one that falls.

    Returns:
        Groups for any `torch.optim.Optimizer`, each with "name", "params", "lr" and "weight_decay".

    Example:
        >>> from ultramem.optim import parameter_groups
        >>> groups = parameter_groups(model, learning_rate=6e-4, weight_decay=0.1, table_multiplier=10.0)
        >>> optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    """
    table_ids = {
        id(parameter) for module in model.modules() if isinstance(module, Table) for parameter in module.parameters()
    }
    undecayed_ids = {
        id(getattr(module, _UNDECAYED[type(module)])) for module in model.modules() if type(module) in _UNDECAYED
    }
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trunk = [parameter for parameter in trainable if id(parameter) not in table_ids]
    vectors = [parameter for parameter in trunk if parameter.ndim < 2 or id(parameter) in undecayed_ids]
    vector_ids = {id(parameter) for parameter in vectors}
    groups: list[dict[str, Any]] = [
        {
            "name": "matrices",
            "params": [parameter for parameter in trunk if id(parameter) not in vector_ids],
            "lr": learning_rate,
            "weight_decay": weight_decay,
        },
        {
            "name": "vectors",
            "params": vectors,
            "lr": learning_rate,
            "weight_decay": 0.0,
        },
        {
            "name": "tables",
            "params": [parameter for parameter in trainable if id(parameter) in table_ids],
            "lr": learning_rate * table_multiplier,
            "weight_decay": table_weight_decay,
        },
    ]
    return [group for group in groups if group["params"]]
