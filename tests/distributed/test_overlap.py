"""What a memory unit gets from other processes is on its way while the blocks that its skip spans are computed."""

from contextlib import ExitStack
from itertools import product
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from tests.distributed.ranks import run_ranks
from tests.distributed.test_tables import WAYS
from tests.train.tiny import tiny_config
from ultramem.distributed.exchange import Exchange
from ultramem.distributed.mesh import make_mesh
from ultramem.distributed.parallelize import parallelize
from ultramem.distributed.tables import finish_table_gradients
from ultramem.models.configuration_ultramem import UltraMemConfig
from ultramem.models.modeling_ultramem import UltraMemForCausalLM

# The unit reads at the first block, and is added after the third.
MODEL = UltraMemConfig(**tiny_config().model.to_diff_dict() | {"num_hidden_layers": 4, "memory_units": ["1:3"]})


class Trace:
    """Blocks, and what is sent and awaited between them, in the order in which a training step comes to them."""

    def __init__(self, model):
        self.events = []
        for number, block in enumerate(model.model.layers, start=1):
            block.register_forward_hook(self._of_block(number))

    def _of_block(self, number):
        def passed(block, inputs, output):
            self.events.append(("block", number))
            output[0].register_hook(lambda gradient: self.events.append(("block", number)))

        return passed

    def recorded(self):
        """A context in which exchanges are recorded."""
        post, all_to_all, events = Exchange.post, Exchange.all_to_all, self.events

        def posted(exchange, pieces, *, back):
            events.append(("sent", id(exchange)))
            return post(exchange, pieces, back=back)

        def awaited(exchange):
            events.append(("awaited", id(exchange)))
            return all_to_all(exchange)

        return patch.multiple(Exchange, post=posted, all_to_all=awaited)

    def spans(self):
        """The blocks between each sending and its awaiting."""
        found = []
        for start, (kind, exchange) in enumerate(self.events):
            if kind == "sent":
                end = self.events.index(("awaited", exchange), start)
                found.append([number for what, number in self.events[start:end] if what == "block"])
        return found


def train_step(style, *, checkpointing, at_once):
    torch.manual_seed(0)
    model = UltraMemForCausalLM(MODEL).train()
    mesh = make_mesh("cpu", trunk_shards=dist.get_world_size(), table_shards=dist.get_world_size())
    parallelize(model, mesh, table_style=style, activation_checkpointing=checkpointing, compile=False)
    tokens = torch.randint(MODEL.vocab_size, (2, 9), generator=torch.Generator().manual_seed(dist.get_rank()))
    trace = Trace(model)
    with ExitStack() as stack:
        stack.enter_context(trace.recorded())
        if at_once:
            for module in ("columns", "pooled_rows"):
                awaited = patch(f"ultramem.distributed.{module}.Arriving", lambda pieces, finish: finish(pieces))
                stack.enter_context(awaited)
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        forward = trace.spans()
        trace.events.clear()
        loss.backward()
    finish_table_gradients(model)
    gradients = {name: weight.grad.to_local() for name, weight in model.named_parameters() if weight.grad is not None}
    return loss.detach(), gradients, forward, trace.spans()


def check_overlap():
    for (way, (style, chosen)), checkpointing in product(WAYS.items(), (False, True)):
        with chosen:
            loss, gradients, forward, backward = train_step(style, checkpointing=checkpointing, at_once=False)
            plain_loss, plain_gradients, *at_once = train_step(style, checkpointing=checkpointing, at_once=True)
        spans = [span for span in forward if span], [span for span in backward if span]
        expected = ([], []) if way == "fetched rows" else ([[2, 3]], [[3, 2]])
        assert spans == expected, (way, checkpointing, spans)
        assert not any(span for spans in at_once for span in spans), way
        assert torch.equal(loss, plain_loss), way
        assert gradients.keys() == plain_gradients.keys()
        for name, gradient in gradients.items():
            assert torch.equal(gradient, plain_gradients[name]), (way, checkpointing, name)


@pytest.mark.parametrize("num_ranks", [2])
def test_a_units_exchange_spans_the_blocks_of_its_skip_in_both_passes(num_ranks):
    run_ranks(check_overlap, num_ranks)
