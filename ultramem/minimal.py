"""The whole UltraMem layer on one page, in plain einsum: to be read, and to be the judge of `ultramem.layers`.

It makes everything that the real layer avoids (the scores of all keys, the rows of all tokens), follows the equations
of "Ultra-Sparse Memory Network" (ICLR 2025) from top to bottom and leaves every gradient to autograd.

    B batch, T tokens, D hidden size, m top-m, H heads, r Tucker rank, h cores, E expansion,
    n logical keys a side, d key width a rank, V value width, R = n * n / E table rows
"""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm over the last dimension, one weight a rank."""
    return x * (x.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt() * weight


def causal_conv(x: Tensor, taps: Tensor) -> Tensor:
    """Depthwise: x (B, T, D), taps (D, k); the last tap is the present token."""
    length, k = x.shape[1], taps.shape[1]
    padded = torch.cat([x.new_zeros(x.shape[0], k - 1, x.shape[2]), x], dim=1)
    return torch.stack([padded[:, i : i + length] * taps[:, i] for i in range(k)]).sum(dim=0)


def leading_vectors(core: Tensor) -> tuple[Tensor, Tensor]:
    """u, t: the leading singular vectors of a core (r, r), with positive sums."""
    left, _, right = torch.linalg.svd(core.detach())
    sign = torch.sign(left[:, 0].sum() + right[0].sum())
    return sign * left[:, 0], sign * right[0]


def among_best(scores: Tensor, m: int) -> Tensor:
    """True where a score is one of the m best of the last dimension."""
    best = scores.topk(min(m, scores.shape[-1])).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)


def permutation(n: int, seed: int) -> Tensor:
    """A shuffle of all n * n slots by four Feistel rounds on (row, column)."""
    left, right = torch.arange(n).repeat_interleave(n), torch.arange(n).repeat(n)
    for i in range(1, 5):
        x = (right * 0x85EBCA6B + i * 0x9E3779B1 + seed * 0x27D4EB2F) % 2**32
        x = (x ^ (x >> 15)) * 0x2C1B3C6D % 2**32
        x = (x ^ (x >> 12)) * 0x297A2D39 % 2**32
        left, right = right, (left + (x ^ (x >> 15))) % n
    return left * n + right


def ultramem(
    hidden: Tensor,  # (B, T, D)
    taps: Tensor,  # (D, k)
    query_proj: Tensor,  # (2 * r * d, D)
    query_norm: Tensor,  # (r, d)
    keys: Tensor,  # (H, 2, n, r, d)
    key_norm: Tensor,  # (r, d)
    cores: Tensor,  # (H, h, r, r)
    table: Tensor,  # (R, V)
    out_proj: Tensor,  # (D, E * V)
    *,
    top_m: int,
    seed: int = 0,
    alpha: float = 0.001,
    tau: float = 0.15,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output (B, T, D), the auxiliary loss, and the chosen slots (B, T, H, m), best first."""
    (B, T, _), (H, _, n, r, d), h, (R, V) = hidden.shape, keys.shape, cores.shape[1], table.shape
    E = n * n // R

    # Query, and its score with every key of both sides in every rank: S_row and S_col.
    query = (causal_conv(hidden, taps) @ query_proj.T).view(B, T, 2, r, d)
    S = torch.einsum("btsrd,hsnrd->bthsrn", rms_norm(query, query_norm), rms_norm(keys, key_norm))

    pooled, slots, auxiliary_loss = hidden.new_zeros(B, T, E, V), [], hidden.new_zeros(())
    for head in range(H):
        C = cores[head].sum(dim=0)
        u, t = leading_vectors(C)
        # Filter (TDQKR): the best rows of u^T S_row and the best columns of t^T S_col; the others are out of the grid.
        rows, columns = S[:, :, head].unbind(dim=2)
        inside_rows = among_best(torch.einsum("a,btan->btn", u, rows), top_m)
        inside_columns = among_best(torch.einsum("c,btcn->btn", t, columns), top_m)
        inside = inside_rows[..., :, None] & inside_columns[..., None, :]
        # Rescoring: S_row^T C S_col over the rest of the grid, top-m of it.
        grid = torch.einsum("btai,ac,btcj->btij", rows, C, columns)
        slot = grid.masked_fill(~inside, -torch.inf).flatten(2).topk(top_m).indices
        slots.append(slot)
        # Multi-core scoring: chunk i of a value is weighted by core i.
        at_row = rows.gather(3, (slot // n)[:, :, None].expand(-1, -1, r, -1))
        at_column = columns.gather(3, (slot % n)[:, :, None].expand(-1, -1, r, -1))
        weights = torch.einsum("btam,iac,btcm->btmi", at_row, cores[head], at_column)
        # Implicit value expansion: a shuffled slot is (physical row, group); pool by group.
        shuffled = permutation(n, seed)[slot] if E > 1 else slot
        row, group = shuffled // E, shuffled % E
        values = (table[row].view(B, T, top_m, h, V // h) * weights[..., None]).flatten(3)
        pooled = pooled + torch.einsum("btmp,btmv->btpv", torch.eye(E, dtype=table.dtype)[group], values)
        # The penalty that keeps C near to rank one.
        excess = (torch.linalg.svdvals(C)[1:] - tau).clamp(min=0)
        auxiliary_loss = auxiliary_loss + alpha / max(1, r - 1) * excess.square().sum()
    return pooled.flatten(2) @ out_proj.T, auxiliary_loss, torch.stack(slots, dim=2)
