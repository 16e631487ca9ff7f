from unittest.mock import patch

import torch

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
