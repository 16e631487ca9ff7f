import pytest
import torch.distributed as dist

from tests.distributed.ranks import run_ranks
from ultramem.distributed.agreement import any_rank, gather, is_first_rank, together


class Stranger(Exception):
    """Cannot be pickled: its constructor wants more than its message."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def caught(failing, error):
    try:
        with together():
            if dist.get_rank() in failing:
                raise error
    except Exception as raised:
        return type(raised), str(raised)
    return None


def agree():
    rank = dist.get_rank()
    return {
        "gather": gather({"rank": rank}),
        "first": is_first_rank(),
        "any": [any_rank(rank == 1), any_rank(False)],
        "none": caught((), None),
        "one": caught((1,), OSError(28, "No space left on device", "file")),
        "both": caught((0, 1), ValueError(f"of rank {rank}")),
        "stranger": caught((1,), Stranger("one", "two")),
    }


def test_two_ranks_agree():
    first, second = run_ranks(agree, 2)
    assert (first.pop("first"), second.pop("first")) == (True, False)
    assert first == second
    assert first["gather"] == [{"rank": 0}, {"rank": 1}]
    assert first["any"] == [True, False]
    assert first["none"] is None
    assert first["one"] == (OSError, "[Errno 28] No space left on device: 'file'")
    assert first["both"] == (ValueError, "of rank 0")
    assert first["stranger"] == (RuntimeError, "Stranger: one two")


def test_a_process_alone_agrees_with_itself():
    assert is_first_rank()
    assert gather("here") == ["here"]
    assert any_rank(True)
    with pytest.raises(OSError, match="full"), together():
        raise OSError("full")
