from contextlib import nullcontext

import pytest
import torch
from torch._library.custom_ops import OPDEFS

import ultramem.ops  # noqa: F401  (its operations are registered)
from ultramem.ops.devices import on_its_device

OPERATIONS = sorted(name for name in OPDEFS if name.startswith("ultramem::"))


class Entered(Exception):
    """The device of a tensor was about to become the current one."""


def test_an_operation_runs_on_the_device_of_its_first_tensor(monkeypatch):
    entered = []
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: entered.append(tensor) or nullcontext())
    first, second = torch.ones(2), torch.ones(3)
    assert on_its_device(lambda first, second, k: (len(first), len(second), k))(first, second, k=4) == (2, 3, 4)
    assert entered == [first]


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_does(name, monkeypatch):
    def enter(tensor):
        raise Entered

    monkeypatch.setattr(torch.cuda, "device_of", enter)
    with pytest.raises(Entered):
        OPDEFS[name]._backend_fns["cuda"](torch.ones(1))
