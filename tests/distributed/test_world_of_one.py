"""A process that torchrun starts alone trains as one that was started without it: same objects, same bits, no word."""

import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.distributed.ranks import run_ranks
from tests.train.tiny import losses, tiny_config, write_data
from ultramem.layers.tables import Table
from ultramem.train.checkpoint import Checkpoints
from ultramem.train.trainer import Trainer, train


class Collectives(TorchDispatchMode):
    """Names of the collectives of a block."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace in ("c10d", "_c10d_functional"):
            self.names.append(function.name())
        return function(*args, **(kwargs or {}))


CONFIG = tiny_config(checkpoint_every_steps=5)


def train_in_a_group(data, out):
    """Collectives of a whole run, and what its model is made of."""
    seen = {"collectives": None}
    run = Trainer.run

    def watched(trainer):
        assert dist.get_world_size() == 1
        seen["parameters"] = {type(parameter) for parameter in trainer.model.parameters()}
        seen["tables"] = {type(module) for module in trainer.model.modules() if isinstance(module, Table)}
        return run(trainer)

    Trainer.run = watched
    with Collectives() as collectives:
        train(CONFIG, data, out)
        dist.init_process_group("gloo")
        assert collectives.names == []
        dist.barrier()  # it would have been seen
    return seen | {"collectives": collectives.names}


def test_in_a_group_of_one_nothing_is_divided_and_nobody_is_asked(tmp_path):
    data, alone, grouped = write_data(tmp_path / "data"), tmp_path / "alone", tmp_path / "grouped"
    train(CONFIG, data, alone)
    (seen,) = run_ranks(train_in_a_group, 1, data, grouped, join=False)
    assert seen["collectives"] == ["c10d::barrier"]
    assert seen["tables"] == {Table}
    assert not any(issubclass(kind, DTensor) for kind in seen["parameters"])
    assert losses(alone) == losses(grouped)
    last, expected = (Checkpoints(run / "checkpoints").path(CONFIG.steps) for run in (grouped, alone))
    files = sorted(expected.glob("*.distcp"))
    assert files
    assert all(file.read_bytes() == (last / file.name).read_bytes() for file in files)
