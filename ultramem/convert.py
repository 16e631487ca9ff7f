"""Reads the parameters of the UltraMem layer that the paper's authors released into ours.

Their layer (`UltraMemLayerV1` of "Ultra-Sparse Memory Network") is ours but for four things, and three of them carry
over exactly: all Tucker ranks read one query of the whole width, so it is repeated for every rank; the norms' epsilon,
which a factor on the queries' projection and on the keys makes up for; the sign of the filter's vectors, which is
taken over. The fourth is the permutation of the expanded slots: theirs is a stored table of random numbers, ours is
computed (`ultramem.ops.physical_rows`), and none of ours is equal to a given random one. Without expansion the rows
are put in our order. With expansion E there is an equal layer without expansion, whose table is E * E times as large.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ultramem.layers.query import NORM_EPSILON
from ultramem.layers.retrieval import MAX_CANDIDATES
from ultramem.layers.tables import Table
from ultramem.layers.ultramem import UltraMemLayer

RELEASED_NORM_EPSILON = 1e-5

# H heads, n' keys a side, d width of a key, r ranks, D hidden size, D_v value size, E expansion, R rows.
_SHAPES = {
    "query_proj.weight": "(2 d, D)",
    "keys": "(H, 2, n', d, r)",
    "values_for_look_up": "(R, D_v)",
    "values_proj.weight": "(D, E D_v)",
    "query_norm.weight": "(d,)",
    "keys_norm.weight": "(d,)",
    "tucker_core.0": "(H, r, r)",
    "shuffle_index": "(n' n',)",
    "tucker_core_u": "(1, H, 1, r)",
    "tucker_core_v": "(1, H, 1, r)",
}


def read_released(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """Read one layer's tensors from a safetensors file or a PyTorch one; no code in the file is executed.

    Args:
        path: the file, `.safetensors` or anything that `torch.load` reads with weights only.
        prefix: what stands before the layer's names, such as "transformer.mem_blocks.0.".

    Returns:
        The tensors whose names begin so, without the prefix.

    Raises:
        ValueError: the file cannot be read, or has no such names.

    Example:
        >>> state = read_released(Path("runs/released/model.pt"), "transformer.mem_blocks.0.")
        >>> layer, table = from_released(state, top_k=80)
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise many types
        raise ValueError(f"{path} cannot be read as tensors alone: {error}") from error
    found = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not found:
        raise ValueError(f"{path} has no names that begin with {prefix!r}, but such as {', '.join(list(state)[:3])}")
    return found


@torch.no_grad()
def from_released(
    state: Mapping[str, Tensor], *, top_k: int, norm_epsilon: float = RELEASED_NORM_EPSILON, unfold: bool = False
) -> tuple[UltraMemLayer, Table]:
    """Make our layer and table of a released layer's parameters, with the same outputs.

    Args:
        state: the tensors by their released names; see `read_released`.
        top_k: m (their `mem_knn`), which is not among them.
        norm_epsilon: of their norms.
        unfold: where there is expansion, make the equal layer without it, whose table is E * E times as large.

    Returns:
        The layer, without convolution and penalty, as theirs trains; and the table that its `forward` takes.

    Raises:
        ValueError: a tensor is missing, unknown, or of a shape that does not fit; m is beyond our candidates; or the
            layer has expansion and `unfold` is false.

    Example:
        >>> n, d, ranks, rows = 6, 4, 2, 36
        >>> state = {
        ...     "query_proj.weight": torch.randn(2 * d, 16), "keys": torch.randn(2, 2, n, d, ranks),
        ...     "values_for_look_up": torch.randn(rows, 8), "values_proj.weight": torch.randn(16, 8),
        ...     "query_norm.weight": torch.ones(d), "keys_norm.weight": torch.ones(d),
        ...     "tucker_core.0": torch.rand(2, 2, 2), "tucker_core.1": torch.rand(2, 2, 2),
        ...     "shuffle_index": torch.randperm(n * n),
        ...     "tucker_core_u": torch.zeros(1, 2, 1, 2), "tucker_core_v": torch.zeros(1, 2, 1, 2),
        ... }
        >>> layer, table = from_released(state, top_k=4)
        >>> layer(torch.randn(1, 3, 16), table).hidden_states.shape
        torch.Size([1, 3, 16])
    """
    cores = _check(state, top_k)
    num_heads, _, num_keys, key_width, num_ranks = state["keys"].shape
    rows, value_size = state["values_for_look_up"].shape
    expansion = num_keys**2 // rows
    if expansion > 1 and not unfold:
        raise ValueError(
            f"the layer has expansion {expansion}, whose slots are shuffled by a stored random permutation that none "
            f"of our computed ones is equal to: give unfold=True for an equal layer without expansion, whose table has "
            f"{expansion**2 * rows * value_size:,} numbers, {expansion**2} times as many"
        )
    layer = UltraMemLayer(
        state["query_proj.weight"].shape[1],
        num_keys=num_keys,
        key_size=num_ranks * key_width,
        value_size=expansion * value_size,
        top_k=top_k,
        num_heads=num_heads,
        tucker_rank=num_ranks,
        num_cores=len(cores),
        expansion=1,
        query_conv_size=0,
        tucker_penalty=0.0,
    )
    _copy_retrieval(layer, state, cores, norm_epsilon)
    chunk = value_size // len(cores)
    # Their projection takes (group, core, chunk), ours takes rows whose chunks belong to cores: (core, group, chunk).
    projection = state["values_proj.weight"].unflatten(1, (expansion, len(cores), chunk)).transpose(1, 2).flatten(1)
    layer.out_proj.weight.copy_(projection)
    return layer, _unshuffled_table(state, expansion, len(cores))


def _copy_retrieval(
    layer: UltraMemLayer, state: Mapping[str, Tensor], cores: list[Tensor], norm_epsilon: float
) -> None:
    num_ranks, key_width = state["keys"].shape[-1], state["keys"].shape[-2]
    # k / sqrt(mean(k^2) + e) is the same for a key that is sqrt(e' / e) times as long and an epsilon of e'.
    scale = (NORM_EPSILON / norm_epsilon) ** 0.5
    projection = state["query_proj.weight"].unflatten(0, (2, 1, key_width))
    layer.query.proj.weight.copy_(scale * projection.expand(-1, num_ranks, -1, -1).flatten(0, 2))
    keys = layer.retrieval.keys
    keys.weight.copy_(scale * state["keys"].transpose(-1, -2))
    assert layer.query.norm_weight is not None
    assert keys.norm_weight is not None
    layer.query.norm_weight.copy_(state["query_norm.weight"])
    keys.norm_weight.copy_(state["keys_norm.weight"])

    layer.retrieval.cores.copy_(torch.stack(cores, dim=1))
    for vectors, name in (("left_vectors", "tucker_core_u"), ("right_vectors", "tucker_core_v")):
        stored = state[name].view(-1, num_ranks, 1)
        # Zeros are what a layer has that never took a step; then the sign is ours, with positive sums.
        getattr(layer.retrieval, vectors).copy_(torch.where((stored == 0).all(dim=1, keepdim=True), 1.0, stored))
    layer.retrieval.refresh()


def _unshuffled_table(state: Mapping[str, Tensor], expansion: int, num_cores: int) -> Table:
    """A row for each logical slot, in their order: the slot's value in its group's place, zeros in the others."""
    values = state["values_for_look_up"]
    places = state["shuffle_index"].long()
    rows, groups = places % len(values), places // len(values)
    table = Table(len(places), expansion * values.shape[1], std=0.0, dtype=values.dtype)
    by_group = table.weight.unflatten(1, (num_cores, expansion, -1))
    by_group[torch.arange(len(places)), :, groups] = values[rows].unflatten(1, (num_cores, -1))
    return table


def _check(state: Mapping[str, Tensor], top_k: int) -> list[Tensor]:
    """Refuse what does not fit; return the cores, one `(H, r, r)` each."""
    cores = [name for name in state if name.startswith("tucker_core.")]
    if missing := [name for name in _SHAPES if name not in state]:
        raise ValueError(f"the released layer lacks {', '.join(missing)}: is the prefix right?")
    if unknown := [name for name in state if name not in _SHAPES and name not in cores]:
        raise ValueError(f"{', '.join(unknown)} is nothing that UltraMemLayerV1 has: is it another layer?")
    if state["keys"].ndim != 5 or state["values_for_look_up"].ndim != 2:
        raise ValueError(
            f"keys {tuple(state['keys'].shape)} and values_for_look_up {tuple(state['values_for_look_up'].shape)} "
            f"should be {_SHAPES['keys']} and {_SHAPES['values_for_look_up']}"
        )
    heads, _, num_keys, width, ranks = state["keys"].shape
    rows, value_size = state["values_for_look_up"].shape
    hidden_size = state["query_proj.weight"].shape[-1]
    expansion = num_keys**2 // rows
    wanted = {
        "query_proj.weight": (2 * width, hidden_size),
        "keys": (heads, 2, num_keys, width, ranks),
        "values_for_look_up": (num_keys**2 / expansion, value_size),
        "values_proj.weight": (hidden_size, expansion * value_size),
        "query_norm.weight": (width,),
        "keys_norm.weight": (width,),
        "shuffle_index": (num_keys**2,),
        "tucker_core_u": (1, heads, 1, ranks),
        "tucker_core_v": (1, heads, 1, ranks),
        **{name: (heads, ranks, ranks) for name in cores},
    }
    for name, shape in wanted.items():
        if tuple(state[name].shape) != shape:
            meaning = _SHAPES.get(name, _SHAPES["tucker_core.0"])
            raise ValueError(f"{name} is {tuple(state[name].shape)}: it should be {shape}, {meaning}")
    if not torch.equal(state["shuffle_index"].sort().values, torch.arange(num_keys**2)):
        raise ValueError("shuffle_index is no permutation: every slot should occur once")
    if top_k > MAX_CANDIDATES:
        raise ValueError(f"top_k is {top_k}: our layer takes {MAX_CANDIDATES} candidates a side, so at most that")
    return [state[f"tucker_core.{number}"] for number in range(len(cores))]
