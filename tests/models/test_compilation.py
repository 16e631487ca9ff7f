"""The trunk compiles to one graph, in training too: same loss, same gradients."""

import pytest
from torch.testing import assert_close

from ultramem.distributed.activation_checkpoint import checkpoint_activations


def loss_and_gradients(model, tokens):
    loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return loss.detach(), {name: grad.to_dense() if grad.is_sparse else grad for name, grad in gradients.items()}


@pytest.mark.slow
def test_a_training_step_in_one_graph_is_the_plain_one(build, tokens):
    """With what is hardest to trace: checkpointed activations, and gradients of as many rows as were touched."""
    results = []
    for compiled in (False, True):
        model = build("ultramem").train()
        model.model.tables[0].sparse = True
        checkpoint_activations(model)
        if compiled:
            model.model.compile(fullgraph=True, backend="aot_eager")
        results.append(loss_and_gradients(model, tokens))
        assert model.model.tables[0].weight.grad.is_sparse
    assert_close(results[1], results[0])
