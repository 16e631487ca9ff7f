"""Compiled, a model trains as it does plain: in regions, as the trainer compiles it, and in one graph."""

import copy
import gc

import pytest
import torch
from torch.testing import assert_close

from ultramem.distributed.activation_checkpoint import checkpoint_activations


def loss_and_gradients(model, tokens):
    loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return loss.detach(), {name: grad.to_dense() if grad.is_sparse else grad for name, grad in gradients.items()}


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", ["dense", "ultramem", "ultramem-v2", "memory-plus", "peer"])
def test_alike_blocks_share_one_code_and_train_as_plain_ones(build, tokens, graphs, name, checkpointed):
    results = []
    for compiled in (False, True):
        model = build(name).train()
        if checkpointed:
            checkpoint_activations(model)
        if compiled:
            model.compile_regions()
        results.append(loss_and_gradients(model, tokens))
    assert_close(results[1], results[0])
    # A block, the cross-entropy, and a memory's queries.
    assert graphs.frame_count == (2 if name == "dense" else 3)


@pytest.mark.parametrize("name", ["dense", "moe", "pkm", "ultramem", "ultramem-v2", "memory-plus"])
def test_another_model_of_the_same_sizes_finds_its_code_compiled(build, tokens, graphs, name):
    """Runs that follow each other in a process, with other seeds or learning rates, compile nothing."""
    counts = []
    for _ in range(2):
        model = build(name).train()
        model.compile_regions()
        loss_and_gradients(model, tokens)
        counts.append(graphs.frame_count)
        del model
        gc.collect()
    assert counts[1] == counts[0]


@pytest.mark.parametrize("use_cache", [False, True])
def test_a_copy_of_a_compiled_model_has_weights_of_its_own(build, tokens, graphs, use_cache):
    model = build("dense")
    model.compile_regions()
    twin = copy.deepcopy(model)
    torch.nn.init.zeros_(twin.model.layers[0].mlp.down_proj.weight)
    expected = build("dense")
    torch.nn.init.zeros_(expected.model.layers[0].mlp.down_proj.weight)
    for compiled, plain in ((twin, expected), (model, build("dense"))):
        assert_close(compiled(tokens, use_cache=use_cache).logits, plain(tokens, use_cache=use_cache).logits)


def test_a_block_with_experts_compiles_whole(build, tokens, graphs):
    """Also where three kinds of blocks meet."""
    plain, compiled = build("ultramem-moe").train(), build("ultramem-moe").train()
    compiled.compile_regions()
    assert_close(loss_and_gradients(compiled, tokens), loss_and_gradients(plain, tokens))
    assert graphs.frame_count == 5


def test_nothing_is_compiled_again_after_the_first_step_and_validation(build, tokens, graphs):
    """Neither for a chunk of another length, nor for what memories return; a batch of another shape costs once."""
    model = build("ultramem")
    model.next_token_loss.chunk_elements = model.config.vocab_size * (tokens.numel() * 2 // 3)
    model.compile_regions()

    def step(tokens):
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()

    @torch.no_grad()
    def validate(tokens):
        model.eval()
        with torch.autocast("cpu", torch.bfloat16):
            model(input_ids=tokens, labels=tokens, use_cache=False, output_memory=True)

    counts = []
    for function, shown in (
        (step, tokens),
        (step, tokens),
        (validate, tokens),
        (step, tokens),
        (validate, tokens),
        (validate, tokens[:, 1:]),
        (validate, tokens[:, 2:]),
        (step, tokens),
        (validate, tokens),
    ):
        before = graphs.frame_count
        function(shown)
        counts.append(graphs.frame_count - before)
    assert counts == [3, 0, 3, 0, 0, 2, 0, 0, 0]


@pytest.mark.slow
def test_a_training_step_in_one_graph_is_the_plain_one(build, tokens):
    """With what is hardest to trace: checkpointed activations, and gradients of as many rows as were touched."""
    results = []
    for compiled in (False, True):
        model = build("ultramem").train()
        model.model.tables[0].sparse = True
        checkpoint_activations(model)
        if compiled:
            model.compile(fullgraph=True, backend="aot_eager")
        results.append(loss_and_gradients(model, tokens))
        assert model.model.tables[0].weight.grad.is_sparse
    assert_close(results[1], results[0])
