"""A model over many processes, in one visible order: tables, activation checkpointing, compilation, trunk."""

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Shard

from ultramem.distributed.activation_checkpoint import checkpoint_activations
from ultramem.distributed.mesh import Mesh
from ultramem.distributed.tables import Style, shard_tables, sharded_tables
from ultramem.layers.retrieval import TuckerRetrieval


def parallelize(
    model: Any, mesh: Mesh | None, *, table_style: Style, activation_checkpointing: bool, compile: bool
) -> None:
    """Make a model ready for training; of what this process does not hold, nothing stays.

    Args:
        model: a causal language model of ours, initialised alike on all processes, on its device.
        mesh: how the processes are arranged; None: this is the only one.
        table_style: how tables are divided among the processes of the table axis.
        activation_checkpointing: see `checkpoint_activations`.
        compile: see `UltraMemForCausalLM.compile_regions`.
    """
    if mesh is not None:
        shard_tables(model, mesh.tables, table_style)
        model.model.reads_ahead = mesh.tables["shard"].size() > 1
    if activation_checkpointing:
        checkpoint_activations(model)
    if compile:
        model.compile_regions()
    if mesh is not None:
        shard_trunk(model, mesh.trunk)


def shard_trunk(model: Any, mesh: DeviceMesh) -> None:
    """Divide all parameters but the tables' by FSDP2: a block or a memory layer is gathered where it is computed.

    Args:
        model: a causal language model of ours, its tables sharded.
        mesh: `Mesh.trunk`. Where its shard axis has size 1, every process has the whole trunk.
    """
    tables = {table.weight for table in sharded_tables(model)}
    decoder = model.model
    num_shards = mesh["shard"].size()
    options: dict[str, Any] = {"mesh": mesh, "shard_placement_fn": lambda weight: even_shard(weight, num_shards)}
    modules = [*decoder.layers, *decoder.memory_layers]
    if decoder.reads_ahead:  # a memory layer's projection is called long after the rest of it
        modules[:0] = [layer.out_proj for layer in decoder.memory_layers if list(layer.out_proj.parameters())]
    for module in modules:
        fully_shard(module, reshard_after_forward=num_shards > 1, **options)
    if decoder.reads_ahead:
        for layer in decoder.memory_layers:
            register_fsdp_forward_method(layer, "read")
    # The embedding is used first and the output layer last: both stay gathered in between.
    fully_shard(model, reshard_after_forward=False, ignored_params=tables, **options)
    for module in model.modules():
        if isinstance(module, TuckerRetrieval):
            module.refresh()  # known by shards from now on: every pass gathers a copy, which would seem new to it


def even_shard(weight: Tensor, num_shards: int) -> Shard:
    """Choose the first dimension that divides into equal parts, else the first of all.

    The keys of a memory have one head or two in their first dimension: by it most processes would hold nothing, and all
    would send the padding of what they do not hold.

    Example:
        >>> even_shard(torch.empty(2, 2, 24, 2, 50), num_shards=8)
        Shard(dim=2)
    """
    even = (dim for dim, length in enumerate(weight.shape) if length % num_shards == 0)
    return Shard(next(even, 0))


def begin_micro_batch(model: nn.Module, *, last: bool) -> None:
    """Let copies of the trunk sum their gradients in the last backward pass of a step only."""
    if isinstance(model, FSDPModule):
        model.set_requires_all_reduce(last)
