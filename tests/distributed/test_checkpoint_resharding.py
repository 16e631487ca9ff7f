"""A checkpoint written on any mesh is read on any other: model and moments, to the bit."""

from itertools import product

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from tests.distributed.ranks import run_ranks
from ultramem.train import checkpoint_pieces
from ultramem.train.checkpoint import Checkpoints, load_state, save_state

# Thirteen rows and six columns: neither divides by four, and with columns the last rank has none.
ROWS, COLUMNS = 13, 6
PLACEMENTS = {"rows": Shard(0), "columns": Shard(1), "replicated": Replicate()}
MESHES = [(1, "alone"), *product((2, 4), PLACEMENTS)]


class Toy(nn.Module):
    """A table beside a trunk, as a model with a memory."""

    def __init__(self, seed, layout):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(ROWS, COLUMNS, generator=generator))
        self.trunk = nn.Linear(5, 7)
        with torch.no_grad():
            for parameter in self.trunk.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.register_buffer("vectors", torch.randn(3, generator=generator))
        if layout != "alone":
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
            self.table = nn.Parameter(distribute_tensor(self.table.data, mesh, [PLACEMENTS[layout]]))
            fully_shard(self.trunk, mesh=mesh)


def optimizers_of(model):
    return [torch.optim.AdamW(model.trunk.parameters(), fused=True), torch.optim.AdamW([model.table], lr=0.1)]


def trained(seed, layout):
    """A model and its optimizers after two steps on gradients that every mesh has alike."""
    model = Toy(seed, layout)
    optimizers = optimizers_of(model)
    for _ in range(2):
        for parameter in model.parameters():
            gradient = torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape)
            if isinstance(parameter, DTensor):
                gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
            parameter.grad = gradient
        for optimizer in optimizers:
            optimizer.step()
    return model, optimizers


def whole(model, optimizers):
    """Everything that a checkpoint must bring back, put together from all ranks."""
    tensors = dict(model.state_dict())
    for number, optimizer in enumerate(optimizers):
        for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            tensors |= {f"{number}.{index}.{name}": value for name, value in optimizer.state[parameter].items()}
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()
        for name, tensor in tensors.items()
    }


def checkpoints(folder, world_size, layout):
    return Checkpoints(folder / f"{world_size}-{layout}")


def save(folder, layouts, background):
    checkpoint_pieces.PIECE_BYTES = 50
    for layout in layouts:
        saved = checkpoints(folder, dist.get_world_size(), layout)
        save_state(saved, 1, *trained(1, layout), background=background)
        saved.finish()


def load_all(folder, layouts):
    """For each pair of meshes, what is not as it was saved."""
    expected = whole(*trained(1, "alone"))
    wrong = {}
    for layout, saved in product(layouts, MESHES):
        model, optimizers = Toy(2, layout), None
        optimizers = optimizers_of(model)
        load_state(checkpoints(folder, *saved), 1, model, optimizers)
        ours = whole(model, optimizers)
        assert ours.keys() == expected.keys()
        wrong[layout, *saved] = [name for name in ours if not torch.equal(ours[name], expected[name])]
    return wrong


def layouts_of(world_size):
    return [layout for size, layout in MESHES if size == world_size]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for world_size in (1, 2, 4):
        run_ranks(save, world_size, folder, layouts_of(world_size), world_size == 2)
    return folder


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_mesh_reads_what_any_mesh_wrote(folder, world_size):
    for wrong in run_ranks(load_all, world_size, folder, layouts_of(world_size)):
        assert wrong == {(layout, *saved): [] for layout, saved in product(layouts_of(world_size), MESHES)}


def test_replicas_are_stored_once_and_by_all(folder):
    sizes = {}
    for layout in ("rows", "replicated"):
        path = checkpoints(folder, 4, layout).path(1)
        sizes[layout] = sorted(file.stat().st_size for file in path.glob("*.distcp"))
    assert len(sizes["replicated"]) == 4
    assert sum(sizes["replicated"]) < 1.5 * sum(sizes["rows"])


def test_a_process_without_a_group_reads_it_all(folder):
    assert load_all(folder, ["alone"]) == {("alone", *saved): [] for saved in MESHES}
