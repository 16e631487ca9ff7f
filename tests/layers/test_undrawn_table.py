import pytest
import torch
from torch import nn

from tests.distributed.largest_tensor import LargestTensor
from ultramem.layers import undrawn_table
from ultramem.layers.tables import Table
from ultramem.layers.undrawn_table import UndrawnTable

# Rows and widths for blocks of 16 rows or more: one block and a part of one, no rest, a rest of one row, fewer than the
# 16 numbers that are drawn at once, and exactly as many.
SIZES = [(100, 7), (48, 3), (33, 5), (17, 8), (3, 5), (2, 8), (1, 1)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(undrawn_table, "DRAWN_AT_ONCE", 50)


@pytest.fixture(params=[torch.float32, torch.float64], autouse=True)
def dtype(request):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(before)


def draw(table_class, size):
    """Two tables between other random numbers, drawn anew once as a model does."""
    torch.manual_seed(0)
    before = torch.randn(3)
    tables = nn.ModuleList(table_class(*size, std=0.3) for _ in range(2))
    for table in tables:
        table.reset_parameters()
    return tables, before, torch.randn(3)


@pytest.mark.parametrize("size", SIZES)
def test_parts_are_those_of_a_table_and_what_follows_is_the_same(size):
    whole, *around = draw(Table, size)
    undrawn, *around_undrawn = draw(UndrawnTable, size)
    assert all(map(torch.equal, around, around_undrawn))
    state = torch.get_rng_state()
    for table, drawn in zip(undrawn.to("cpu"), whole, strict=True):
        assert table.weight.is_meta
        assert (table.weight.shape, table.weight.dtype) == (drawn.weight.shape, drawn.weight.dtype)
        for dim, length in enumerate(size):
            for start, end in {(0, length), (0, (length + 1) // 2), (length // 2, length), (length - 1, length)}:
                expected = drawn.weight.detach().narrow(dim, start, end - start)
                for part in (table.narrow(dim, start, end - start), drawn.narrow(dim, start, end - start)):
                    assert torch.equal(part, expected)
                    assert part.is_contiguous()
                    assert part.untyped_storage().nbytes() == part.nbytes
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_larger_than_a_part_or_a_block_is_ever_in_memory():
    with LargestTensor() as largest:
        tables, *_ = draw(UndrawnTable, (4000, 7))
    assert 0 < largest.num_bytes < 2 * 16 * 7 * torch.get_default_dtype().itemsize
    with LargestTensor() as largest:
        part = tables[0].narrow(0, 1000, 1000)
    assert largest.num_bytes == part.nbytes
