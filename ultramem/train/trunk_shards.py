"""What each of several processes holds of a trunk that FSDP2 divides, padding included."""

import json
import math
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

import torch

from ultramem.distributed.parallelize import even_shard
from ultramem.layers.tables import Table
from ultramem.models.configuration_ultramem import UltraMemConfig
from ultramem.models.modeling_ultramem import UltraMemForCausalLM


class TrunkShard(NamedTuple):
    """Numbers of one process, those with which it pads its part up to the largest one's among them."""

    blocks: int
    """Of blocks and memory layers, which are gathered for each pass."""
    rest: int
    """Of embedding, output layer and last norm, which stay gathered in between."""


def trunk_shard(config: UltraMemConfig, num_shards: int) -> TrunkShard:
    """Divide each parameter but the tables' as `ultramem.distributed.parallelize.shard_trunk` does; in no memory.

    Example:
        >>> trunk_shard(recipes.get("cpu-dense").model, num_shards=4)
        TrunkShard(blocks=361344, rest=262176)
    """
    numbers = {True: 0, False: 0}
    for (of_block, shape), count in _trunk_shapes(config.to_json_string()).items():
        length = shape[even_shard(torch.empty(shape, device="meta"), num_shards).dim]
        numbers[of_block] += count * -(-length // num_shards) * (math.prod(shape) // length)
    return TrunkShard(blocks=numbers[True], rest=numbers[False])


@lru_cache
def _trunk_shapes(config: str) -> Counter[tuple[bool, torch.Size]]:
    """How many parameters there are of each shape, in blocks and memory layers and besides; of a model's JSON."""
    with torch.device("meta"):
        model = UltraMemForCausalLM(UltraMemConfig.from_dict(json.loads(config)))
    tables = {table.weight for table in model.modules() if isinstance(table, Table)}
    of_blocks = {*model.model.layers.parameters(), *model.model.memory_layers.parameters()}
    return Counter((weight in of_blocks, weight.shape) for weight in set(model.parameters()) - tables)
