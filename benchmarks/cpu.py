"""The reference operations and the whole layer on a CPU, against what people would write or install instead.

python -m benchmarks.cpu                      # the operations
python -m benchmarks.cpu --peer               # also PyPI's ultra-mem, where it is installed by hand
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.record import show, write
from ultramem import ops
from ultramem.layers import Table, UltraMemLayer
from ultramem.layers.ultramem import value_std

REPEATS = 5


def forward_and_backward(forward: Callable[[], Tensor]) -> tuple[float, float]:
    """Seconds of a forward and of a backward pass: medians after one warm-up."""
    seconds = []
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        out = forward()
        middle = time.perf_counter()
        out.sum().backward()
        seconds.append((middle - begin, time.perf_counter() - middle))
    forwards, backwards = zip(*seconds[1:], strict=True)
    return sorted(forwards)[REPEATS // 2], sorted(backwards)[REPEATS // 2]


def lookup_rows(tokens: int, slots_a_token: int, width: int, side: int) -> list[dict[str, object]]:
    """`ops.lookup` against gathering the rows and einsum."""
    torch.manual_seed(0)
    table = torch.randn(side**2, width, requires_grad=True)
    weights = torch.randn(tokens, 1, slots_a_token, requires_grad=True)
    slots = torch.randint(side**2, (tokens, slots_a_token))

    def fresh(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            table.grad = weights.grad = None
            return function()

        return run

    ours = fresh(lambda: ops.lookup(table, slots, weights, num_keys=side))
    peer = fresh(lambda: torch.einsum("nk,nkv->nv", weights[:, 0], table[slots]))
    sizes = f"{tokens} tokens, {slots_a_token} slots, width {width}, {side**2} rows"
    return [compare("lookup", sizes, "gather + einsum", ours, peer)]


def layer_rows(tokens: int) -> list[dict[str, object]]:
    """`UltraMemLayer` against PyPI's ``ultra_mem.UltraMem`` at equal sizes."""
    from ultra_mem import UltraMem  # installed by hand: it is a peer, not a dependency

    torch.manual_seed(0)
    hidden_size, keys, key_size, value_size, top_k = 256, 128, 128, 128, 16
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

    def fresh(modules: list[torch.nn.Module], function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            for module in modules:
                module.zero_grad()
            return function()

        return run

    ours = fresh([layer, table], lambda: layer(hidden, table).hidden_states)
    theirs = fresh([peer], lambda: peer(hidden)[0])
    sizes = f"{tokens} tokens, hidden {hidden_size}, {keys**2} rows x {value_size}, E 4, top-m {top_k}"
    return [compare("whole layer", sizes, "ultra-mem (PyPI)", ours, theirs)]


def compare(
    what: str, sizes: str, peer_name: str, ours: Callable[[], Tensor], peer: Callable[[], Tensor]
) -> dict[str, object]:
    """One row: our seconds, theirs, and the ratio of theirs to ours."""
    our_forward, our_backward = forward_and_backward(ours)
    peer_forward, peer_backward = forward_and_backward(peer)
    return {
        "what": what,
        "sizes": sizes,
        "peer": peer_name,
        "forward_seconds": our_forward,
        "backward_seconds": our_backward,
        "peer_forward_seconds": peer_forward,
        "peer_backward_seconds": peer_backward,
        "forward_ratio": peer_forward / our_forward,
        "backward_ratio": peer_backward / our_backward,
        "total_ratio": (peer_forward + peer_backward) / (our_forward + our_backward),
    }


def main() -> None:
    """Measures, prints a table and keeps the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", action="store_true", help="also measure PyPI's ultra-mem (pip install ultra-mem)")
    arguments = parser.parse_args()
    rows = lookup_rows(tokens=4096, slots_a_token=64, width=256, side=448)
    if arguments.peer:
        rows += layer_rows(tokens=2048)
    show(rows, title="CPU: times faster than the peer")
    print(f"kept in {write(rows, 'cpu')}")


if __name__ == "__main__":
    main()
