from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch import nn

from tests.distributed.ranks import run_ranks
from tests.train.tiny import tiny_config
from ultramem.distributed.mesh import make_mesh
from ultramem.distributed.parallelize import begin_micro_batch, parallelize
from ultramem.models.modeling_ultramem import UltraMemForCausalLM


def count_decompositions():
    """How often cores were decomposed in two accumulated passes, and in the optimizer's step."""
    torch.manual_seed(0)
    model = UltraMemForCausalLM(tiny_config().model).train()
    mesh = make_mesh("cpu", trunk_shards=2, table_shards=2)
    parallelize(model, mesh, table_style="columns", activation_checkpointing=True, compile=False)
    tokens = torch.randint(model.config.vocab_size, (2, 8))
    with patch.object(torch.linalg, "svd", wraps=torch.linalg.svd) as svd:
        for last in (False, True):
            begin_micro_batch(model, last=last)
            model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        in_passes = svd.call_count
        trunk = [weight for name, weight in model.named_parameters() if "tables" not in name]
        torch.optim.SGD(trunk, lr=1e-3).step()
    return in_passes, svd.call_count - in_passes


def test_gathered_cores_are_decomposed_after_the_optimizers_steps_alone():
    """Wherever memory they are gathered into: a pass that is computed again must do what the first did."""
    num_memories = len(tiny_config().model.memory_units)
    assert run_ranks(count_decompositions, 2) == [(0, num_memories)] * 2


def losses_of_three_steps(compiled):
    """Of a model whose blocks are gathered where they are computed."""
    torch.manual_seed(0)
    model = UltraMemForCausalLM(replace(tiny_config().model, dropout=0.0)).train()
    mesh = make_mesh("cpu", trunk_shards=2, table_shards=2)
    plain = nn.Module.compile
    with patch.object(nn.Module, "compile", lambda self, **settings: plain(self, backend="aot_eager", **settings)):
        parallelize(model, mesh, table_style="rows", activation_checkpointing=True, compile=compiled)
    optimizer = torch.optim.SGD([weight for name, weight in model.named_parameters() if "tables" not in name], lr=0.1)
    tokens = torch.randint(model.config.vocab_size, (2, 8))
    losses = []
    for _ in range(3):
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_compiled_regions_train_alike_where_blocks_are_gathered():
    plain, compiled = (run_ranks(losses_of_three_steps, 2, chosen) for chosen in (False, True))
    assert compiled == [pytest.approx(losses, rel=1e-5) for losses in plain]
    assert plain[0][2] < plain[0][0]
