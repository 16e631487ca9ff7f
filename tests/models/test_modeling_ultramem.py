import math
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM, Trainer, TrainingArguments

from ultramem import MemoryOutput
from ultramem.models.cache_keyword import CACHE_KEYWORD
from ultramem.optim import parameter_groups

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")


def gradients(model, tokens) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(tokens, labels=tokens).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("config_class", "model_class", "qk_norm"),
    [(LlamaConfig, LlamaForCausalLM, False), (Qwen3Config, Qwen3ForCausalLM, True)],
)
def test_dense_equals_transformers_own_models_on_shared_weights(build, tokens, config_class, model_class, qk_norm):
    ours = build("dense", attention_qk_norm=qk_norm, rms_norm_eps=1e-5, rope_theta=5000.0).double()
    shared = {name: getattr(ours.config, name) for name in SIZES}
    theirs = model_class(
        config_class(**shared, num_key_value_heads=2, rms_norm_eps=1e-5, rope_parameters=ours.config.rope_parameters)
    ).double()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    padding = torch.ones_like(tokens)
    padding[0, :3] = 0
    for mask in (None, padding):
        rows = slice(None) if mask is None else mask.bool()
        torch.testing.assert_close(
            ours(tokens, attention_mask=mask).logits[rows],
            theirs(tokens, attention_mask=mask).logits[rows],
            rtol=0,
            atol=2e-6,  # their norm is in float32
        )
    torch.testing.assert_close(gradients(ours, tokens), gradients(theirs, tokens), rtol=0, atol=2e-6)


def test_every_parameter_gets_a_gradient(build, tokens, member):
    for name, gradient in gradients(build(member), tokens).items():
        assert gradient.abs().max() > 0, name
        if name.endswith("proj.weight"):  # a matrix of which a part is never read has rows without one
            assert (gradient.abs().amax(dim=-1) > 0).all(), name


def test_the_loss_is_the_cross_entropy_and_the_auxiliary_loss(build, tokens, member):
    model = build(member)
    output = model(tokens, labels=tokens)
    logits = model(tokens).logits[:, :-1].flatten(0, 1)
    torch.testing.assert_close(
        output.cross_entropy, torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()).detach()
    )
    torch.testing.assert_close(output.loss, output.cross_entropy + output.auxiliary_loss)
    assert output.auxiliary_loss.dtype == torch.float32
    has_auxiliary_loss = "moe" in model.config.block_ffns or (member.startswith("ultramem") and member != "ultramem-v2")
    assert (output.auxiliary_loss > 0) == has_auxiliary_loss


def test_only_what_is_asked_for_is_returned(build, tokens):
    model = build("ultramem")
    assert model(tokens).loss is None
    with_loss = model(tokens, labels=tokens)
    assert with_loss.logits is None
    assert CACHE_KEYWORD not in with_loss
    assert with_loss.memory is None
    torch.testing.assert_close(model(tokens, labels=tokens, logits_to_keep=2).logits, model(tokens).logits[:, -2:])
    positions = torch.tensor([0, 4])
    torch.testing.assert_close(model(tokens, logits_to_keep=positions).logits, model(tokens).logits[:, positions])
    embeds = model.get_input_embeddings()(tokens)
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, model(tokens).logits)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(tokens, inputs_embeds=embeds)


def test_shares_of_an_accumulated_batch_add_up(build, tokens):
    model = build("dense")
    labels = tokens.clone()
    labels[0, 4:] = -100
    whole = model(tokens, labels=labels).loss
    predicted = (labels[:, 1:] != -100).sum()
    shares = [model(tokens[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=predicted).loss for i in range(3)]
    torch.testing.assert_close(sum(shares), whole)


def test_skip_units_equal_a_loop_by_hand(build, tokens):
    model = build("ultramem")  # 1:3, 2:4, 4:4
    trunk = model.model
    hidden = trunk.embed_tokens(tokens)
    rotary = trunk.rotary_emb(hidden, torch.arange(tokens.shape[1])[None])
    arriving = {3: [], 4: []}
    for number, block in enumerate(trunk.layers, start=1):
        attention = block.self_attn
        hidden = hidden + attention.attend(attention.project(block.input_layernorm(hidden), rotary))
        normed = block.post_attention_layernorm(hidden)
        hidden = hidden + block.mlp(normed)
        for unit, read, add in ((0, 1, 3), (1, 2, 4), (2, 4, 4)):
            if read == number:
                arriving[add].append(trunk.memory_layers[unit](normed, trunk.tables[unit]).hidden_states)
        hidden = hidden + sum(arriving.get(number, []))
    torch.testing.assert_close(model.lm_head(trunk.norm(hidden)), model(tokens).logits)


def test_output_memory_tells_what_each_unit_read(build, tokens):
    model = build("ultramem")
    memory = model(tokens, output_memory=True).memory
    assert len(memory) == 3
    assert all(isinstance(unit, MemoryOutput) for unit in memory)
    assert memory[0].slots.shape == (3, 11, 2, 4)
    assert memory[0].hidden_states.shape == (3, 11, 32)
    assert build("dense")(tokens, output_memory=True).memory == ()


def test_hidden_states_are_the_residual_stream(build, tokens):
    model = build("ultramem")
    states = model(tokens, output_hidden_states=True).hidden_states
    assert len(states) == 5
    torch.testing.assert_close(states[0], model.get_input_embeddings()(tokens))
    torch.testing.assert_close(model.lm_head(states[-1]), model(tokens).logits)
    # Block 4 begins from what block 3 and the unit 1:3 gave.
    fourth = model.model.layers[3].input_layernorm
    seen = []
    handle = fourth.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model(tokens)
    handle.remove()
    torch.testing.assert_close(states[3], seen[0])


@pytest.mark.parametrize("name", ["ultramem", "ultramem-ring", "ultramem-v2", "ultramem-v2-ring", "peer", "peer-block"])
def test_initial_outputs_have_the_promised_spread(build, name):
    model = build(name, hidden_size=64, memory_num_keys=64, memory_key_size=32, memory_top_k=16)
    memory = model(torch.randint(61, (8, 64)), output_memory=True).memory
    promised = 1 / math.sqrt(2 * 4)
    for unit in memory:
        assert unit.hidden_states.std().item() == pytest.approx(promised, rel=0.25)


def test_initialisation_reaches_what_to_empty_left(build, member):
    with torch.device("meta"):
        model = type(build(member))(build(member).config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(math.nan)
    torch.manual_seed(0)
    model.initialize_weights()
    model.tie_weights()
    expected = build(member)
    for name, tensor in model.state_dict().items():
        assert tensor.isfinite().all(), name
        if tensor.numel() >= 64:  # a spread needs some numbers to be measured
            spread = expected.state_dict()[name].square().mean().sqrt().item()
            assert tensor.square().mean().sqrt().item() == pytest.approx(spread, rel=0.5), name
    assert all(buffer.isfinite().all() for buffer in model.buffers())
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, expected.model.rotary_emb.inv_freq)


@pytest.mark.parametrize("name", ["dense", "ultramem", "ultramem-v2-ring", "pkm", "memory-plus", "peer-block"])
def test_shapes_are_known_without_numbers(build, tokens, name):
    """But for experts, whose shares of the tokens are numbers."""
    with torch.device("meta"):
        model = build(name)
    assert model(tokens.to("meta")).logits.shape == (*tokens.shape, 61)


@pytest.mark.parametrize("name", ["moe", "ultramem", "ultramem-v2-ring", "memory-plus", "peer"])
def test_gradient_checkpointing_changes_nothing(build, tokens, name):
    plain, checkpointed = build(name, dropout=0.2).train(), build(name, dropout=0.2).train()
    checkpointed.gradient_checkpointing_enable()
    torch.manual_seed(3)
    expected = gradients(plain, tokens)
    torch.manual_seed(3)
    torch.testing.assert_close(gradients(checkpointed, tokens), expected, rtol=0, atol=0)


def test_gradient_checkpointing_retrieves_once(build, tokens):
    class Calls(TorchDispatchMode):
        names: ClassVar[list[str]] = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names.append(function.name())
            return function(*args, **(kwargs or {}))

    model = build("ultramem").train()
    model.gradient_checkpointing_enable()
    with Calls():
        model(tokens, labels=tokens).loss.backward()
    num_units = len(model.config.memory_units)
    assert Calls.names.count("ultramem::select_keys") == num_units
    assert Calls.names.count("ultramem::rescore") == num_units
    assert Calls.names.count("ultramem::lookup") == 2 * num_units, "the lookup is computed again"


def test_gradient_checkpointing_keeps_no_memory_activations(build, tokens):
    def kept(model) -> int:
        kept_bytes = 0

        def pack(tensor):
            nonlocal kept_bytes
            kept_bytes += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(tokens, labels=tokens)
        return kept_bytes

    model = build("ultramem").train()
    plain = kept(model)
    model.gradient_checkpointing_enable()
    assert kept(model) < plain / 4


def test_autocast_stays_near(build, tokens, member):
    model = build(member)
    exact = model(tokens, labels=tokens)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(tokens, labels=tokens)
    assert low.loss.dtype == torch.float32
    assert abs(low.loss - exact.loss) < 0.05
    low.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_dropout_acts_in_training_alone(build, tokens):
    model = build("ultramem", dropout=0.3)
    torch.testing.assert_close(model(tokens).logits, build("ultramem")(tokens).logits)
    model.train()
    assert not torch.equal(model(tokens).logits, model(tokens).logits)
    undropped = build("ultramem").train()
    assert torch.equal(undropped(tokens).logits, undropped(tokens).logits)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ultramem", "ultramem-v2", "memory-plus", "peer"])
def test_compiled_in_one_graph_it_is_the_same(build, tokens, name):
    model = build(name, num_hidden_layers=2, memory_units=["1:2"])
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(tokens, use_cache=False).logits, model(tokens).logits, rtol=1e-4, atol=1e-5)


def test_every_member_learns(build, tokens, member):
    model = build(member).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, learning_rate=1e-2, weight_decay=0.1))
    before = model(tokens, labels=tokens).cross_entropy
    untrained = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(20):
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert model(tokens, labels=tokens).cross_entropy < before - 1
    for old, (name, new) in zip(untrained, model.named_parameters(), strict=True):
        assert not torch.equal(old, new), name


def test_ten_steps_of_the_stock_trainer_lower_the_loss(build, tokens, tmp_path):
    model = build("ultramem-moe")
    dataset = [{"input_ids": row, "labels": row} for row in tokens.repeat(8, 1)]
    arguments = TrainingArguments(
        output_dir=tmp_path,
        max_steps=10,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=dataset, eval_dataset=dataset)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 10
    assert losses[-1] < losses[0] - 0.5
    assert trainer.evaluate()["eval_loss"] < losses[0] - 0.5


def test_positions_that_begin_anew_are_sequences_of_their_own(build, tokens):
    model = build("dense")
    first, second = tokens[:1, :4], tokens[:1, 4:9]
    positions = torch.cat([torch.arange(4), torch.arange(5)])[None]
    packed = model(torch.cat([first, second], dim=1), position_ids=positions, use_cache=False).logits
    apart = [model(sequence, use_cache=False).logits for sequence in (first, second)]
    torch.testing.assert_close(packed, torch.cat(apart, dim=1))


@pytest.mark.parametrize("name", ["dense", "pkm", "ultramem", "ultramem-v2", "memory-plus"])
def test_a_training_pass_never_waits_for_the_device(build, tokens, name):
    class NothingIsRead(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert function is not torch.ops.aten._local_scalar_dense.default
            return function(*args, **(kwargs or {}))

    model = build(name).train()
    with NothingIsRead():
        model(tokens, labels=tokens, use_cache=False).loss.backward()
