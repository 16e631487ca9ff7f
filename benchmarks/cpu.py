"""The reference operations and the whole layer on a CPU, against what people would write or install instead.

python -m benchmarks.cpu                      # the operations
python -m benchmarks.cpu --peer               # also PyPI's ultra-mem, where it is installed by hand
"""

import argparse
import time
from collections.abc import Callable, Iterable
from statistics import median

import torch
from torch import Tensor

from benchmarks.record import show, write
from ultramem import ops
from ultramem.layers import Table, UltraMemLayer
from ultramem.layers.ultramem import value_std

REPEATS = 5


def forward_and_backward(forward: Callable[[], Tensor], leaves: Iterable[Tensor]) -> tuple[float, float]:
    """Seconds of a forward and of a backward pass: medians after one warm-up, from a random gradient."""
    leaves, seconds = list(leaves), []
    for _ in range(REPEATS + 1):
        for leaf in leaves:
            leaf.grad = None
        begin = time.perf_counter()
        out = forward()
        middle = time.perf_counter()
        gradient = torch.randn_like(out)
        resume = time.perf_counter()
        out.backward(gradient)
        seconds.append((middle - begin, time.perf_counter() - resume))
    forwards, backwards = zip(*seconds[1:], strict=True)
    return median(forwards), median(backwards)


def lookup_row(tokens: int, slots_a_token: int, width: int, side: int) -> dict[str, object]:
    """`ops.lookup` against gathering the rows and einsum."""
    torch.manual_seed(0)
    table = torch.randn(side**2, width, requires_grad=True)
    weights = torch.randn(tokens, 1, slots_a_token, requires_grad=True)
    slots = torch.randint(side**2, (tokens, slots_a_token))
    ours = forward_and_backward(lambda: ops.lookup(table, slots, weights, num_keys=side), [table, weights])
    peer = forward_and_backward(lambda: torch.einsum("nk,nkv->nv", weights[:, 0], table[slots]), [table, weights])
    sizes = f"{tokens} tokens, {slots_a_token} slots, width {width}, {side**2} rows"
    return compare("lookup", sizes, "gather + einsum", ours, peer)


def layer_row(tokens: int, hidden_size: int, keys: int, value_size: int, top_k: int) -> dict[str, object]:
    """`UltraMemLayer` against PyPI's ``ultra_mem.UltraMem`` at equal sizes."""
    from ultra_mem import UltraMem  # installed by hand: it is a peer, not a dependency

    torch.manual_seed(0)
    key_size = 128
    layer = UltraMemLayer(
        hidden_size, num_keys=keys, key_size=key_size, value_size=value_size, top_k=top_k, query_conv_size=5
    )
    table = Table(keys**2, value_size, std=value_std(expansion=4, top_k=top_k, num_heads=2, num_layers=1))
    # Its heads have tables of their own: half the width makes the parameters equal (and our reads twice as wide).
    peer = UltraMem(
        hidden_size,
        dim_out=hidden_size,
        dim_values=value_size // 2,
        dim_queries_keys=key_size // 2,
        num_memories=keys**2 * 4,
        topk=top_k,
        core_rank=2,
        core_heads=2,
        value_expansion=4,
        pre_query_causal_conv=True,
    )
    hidden = torch.randn(1, tokens, hidden_size)
    ours = forward_and_backward(lambda: layer(hidden, table).hidden_states, [*layer.parameters(), *table.parameters()])
    theirs = forward_and_backward(lambda: peer(hidden)[0], peer.parameters())
    sizes = f"{tokens} tokens, hidden {hidden_size}, {keys**2} rows x {value_size}, E 4, top-m {top_k}"
    return compare("whole layer", sizes, "ultra-mem (PyPI)", ours, theirs)


def compare(
    what: str, sizes: str, peer_name: str, ours: tuple[float, float], peer: tuple[float, float]
) -> dict[str, object]:
    """One row: our seconds forward and backward, theirs, and the ratios of theirs to ours."""
    return {
        "what": what,
        "sizes": sizes,
        "peer": peer_name,
        "forward_seconds": ours[0],
        "backward_seconds": ours[1],
        "peer_forward_seconds": peer[0],
        "peer_backward_seconds": peer[1],
        "forward_ratio": peer[0] / ours[0],
        "backward_ratio": peer[1] / ours[1],
        "total_ratio": sum(peer) / sum(ours),
    }


def main() -> None:
    """Measures, prints a table and keeps the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="store_true", help="also measure PyPI's ultra-mem (pip install ultra-mem)")
    arguments = parser.parse_args()
    rows = [lookup_row(tokens=4096, slots_a_token=64, width=256, side=448)]
    if arguments.peer:
        rows.append(layer_row(tokens=2048, hidden_size=256, keys=128, value_size=128, top_k=16))
        rows.append(layer_row(tokens=4096, hidden_size=512, keys=256, value_size=256, top_k=32))
    show(rows, title="CPU: times faster than the peer")
    print(f"kept in {write(rows, 'cpu')}")


if __name__ == "__main__":
    main()
