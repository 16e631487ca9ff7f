"""What each process holds and sends, by the configuration, is what a step's collectives send."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from tests.distributed.ranks import run_ranks
from tests.distributed.sent_bytes import SentBytes
from tests.distributed.test_training import MEMORIES
from tests.train.tiny import tiny_config
from ultramem import recipes
from ultramem.distributed.communication import Links
from ultramem.distributed.mesh import run_mesh
from ultramem.distributed.parallelize import begin_micro_batch, parallelize
from ultramem.distributed.tables import finish_table_gradients
from ultramem.models.modeling_ultramem import UltraMemForCausalLM
from ultramem.recipes.registry import with_model
from ultramem.train.config import ParallelConfig
from ultramem.train.layout import choose_tables, share_of


def config_of(member, **parallel):
    """Micro-batches of three sequences, and a last one of two on two processes, of one on four."""
    sizes = MEMORIES[member] | ({} if member in ("dense", "moe") else {"memory_num_heads": 4})  # all divides by 4
    config = with_model(tiny_config(micro_batch_size=3), dropout=0.0, **sizes)
    return replace(config, batch_size=16, parallel=ParallelConfig(**parallel))


def measure(config):
    """Bytes that all processes send in a step, and numbers that this one holds: of trunk and tables."""
    layout, style = config.parallel, choose_tables(config, dist.get_world_size())
    torch.manual_seed(0)
    model = UltraMemForCausalLM(config.model).train()
    parallelize(
        model,
        run_mesh(
            "cpu",
            trunk_shards=layout.trunk_shards if layout.trunk == "shard" else 1,
            table_shards=layout.table_shards if style != "replicate" else 1,
        ),
        table_style="columns" if style == "columns" else "rows",
        activation_checkpointing=config.activation_checkpointing,
        compile=False,
    )
    sequences = config.batch_size // dist.get_world_size()
    batch = torch.randint(config.model.vocab_size, (sequences, config.sequence_length))
    micro_batches = batch.split(config.micro_batch_size)
    with SentBytes() as sent:
        for number, micro_batch in enumerate(micro_batches, start=1):
            begin_micro_batch(model, last=number == len(micro_batches))
            model(input_ids=micro_batch, labels=micro_batch, use_cache=False).loss.backward()
        finish_table_gradients(model)
    total = torch.tensor(sent.total, dtype=torch.float64)
    dist.all_reduce(total)
    held = {True: 0, False: 0}
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        held["tables" in name] += parameter.to_local().numel()
    return total.item(), held[False], held[True]


def check(configs):
    for name, config in configs.items():
        num_processes = dist.get_world_size()
        sent, trunk, tables = measure(config)
        share = share_of(config, num_processes)
        expected = num_processes * sum(traffic.num_bytes for traffic in share.trunk_traffic + share.table_traffic)
        assert (share.trunk_bytes, share.table_bytes) == (16 * trunk, 16 * tables), name
        if share.tables == "rows":  # other rows than expected, and fewer: a token's slots are all different
            for_tables = num_processes * sum(traffic.num_bytes for traffic in share.table_traffic)
            assert abs(sent - expected) < 0.5 * for_tables, (name, sent, expected)
        else:
            assert sent == pytest.approx(expected), name


@pytest.mark.parametrize("num_processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_member_of_the_family_sends_what_its_configuration_says(num_processes):
    configs = {member: config_of(member, tables="columns") for member in MEMORIES}
    configs |= {f"{member} rows": config_of(member, tables="rows") for member in ("ultramem", "ultramem_v2", "peer")}
    configs["replicate"] = config_of("ultramem", tables="replicate", trunk="replicate")
    for name in ("ultramem", "ultramem rows", "ultramem_v2", "peer"):
        configs[f"{name} checkpointing"] = replace(configs[name], activation_checkpointing=True)
    run_ranks(check, num_processes, configs)


def uneven_config(**parallel):
    """Neither vocabulary, hidden size, keys, rows nor columns divide by four, and two heads leave processes without."""
    sizes = {
        "hidden_size": 38,
        "num_attention_heads": 1,
        "intermediate_size": 46,
        "vocab_size": 67,
        "memory_num_heads": 2,
        "memory_num_keys": 7,
    }
    sizes |= {"memory_key_size": 10, "memory_value_size": 18}
    return replace(with_model(config_of("ultramem", **parallel), **sizes), batch_size=12, micro_batch_size=2)


def check_uneven():
    num_processes, rank = dist.get_world_size(), dist.get_rank()
    for tables, trunk in (("rows", "shard"), ("columns", "shard"), ("replicate", "shard"), ("replicate", "replicate")):
        config = uneven_config(tables=tables, trunk=trunk)
        sent, *held = measure(config)
        share = share_of(config, num_processes)
        predicted = [share.trunk_bytes // 16, share.table_bytes // 16]
        if rank == 0:
            assert held == predicted, (tables, trunk)
        assert all(mine <= first for mine, first in zip(held, predicted, strict=True)), (tables, trunk)
        if tables == "replicate":
            expected = num_processes * sum(part.num_bytes for part in share.trunk_traffic + share.table_traffic)
            assert sent == pytest.approx(expected), trunk


@pytest.mark.parametrize("num_processes", [2, 3, 4])
def test_what_does_not_divide_is_held_and_sent_with_its_padding(num_processes):
    run_ranks(check_uneven, num_processes)


@pytest.mark.parametrize(
    ("recipe", "parallel", "num_processes", "style"),
    [
        ("cpu-dense", {}, 2, "replicate"),
        ("cpu-ultramem", {}, 1, "replicate"),
        ("ultramem-1.6b-x12", {}, 8, "columns"),
        ("ultramem-1.6b-x12", {"tables": "rows"}, 8, "rows"),
        ("ultramem-1.6b-x12", {}, 2048, "rows"),  # there are 1024 columns
        ("ultramem-1.6b-x12", {"table_shards": 8}, 2048, "columns"),
    ],
)
def test_tables_are_divided_as_told_or_as_sends_the_fastest(recipe, parallel, num_processes, style):
    config = replace(recipes.get(recipe), parallel=ParallelConfig(**parallel))
    assert choose_tables(config, num_processes) == style


def test_small_tables_that_are_read_often_are_replicated():
    config = replace(tiny_config(), parallel=ParallelConfig(tables="auto"))
    assert choose_tables(config, 2) == "replicate"


def test_the_least_time_is_that_of_the_choice():
    config = recipes.get("ultramem-1.6b-x12")
    for num_processes in (8, 64, 512):
        shares = {
            style: share_of(replace(config, parallel=ParallelConfig(tables=style)), num_processes)
            for style in ("rows", "columns")
        }
        seconds = {style: share.seconds(Links()) for style, share in shares.items()}
        assert choose_tables(config, num_processes) == min(seconds, key=seconds.get)


def test_what_does_not_divide_is_named():
    config = recipes.get("ultramem-1.6b-x12")
    with pytest.raises(ValueError, match="batch_size is 2048: it must be a multiple of 3 processes"):
        share_of(config, 3)
    with pytest.raises(ValueError, match=r"parallel.table_shards is 3: it must divide"):
        share_of(replace(config, parallel=ParallelConfig(table_shards=3)), 8)
    with pytest.raises(ValueError, match=r"table_shards is 2048: tables of 1024 columns .* by columns"):
        share_of(replace(config, parallel=ParallelConfig(tables="columns")), 2048)


def test_a_slower_network_takes_longer_between_nodes_only():
    share = share_of(recipes.get("ultramem-1.6b-x12"), 8)
    assert share.seconds(Links()) == share.seconds(Links(network_bandwidth=1.0))
    share = share_of(recipes.get("ultramem-1.6b-x12"), 16)
    assert share.seconds(Links()) < share.seconds(Links(network_bandwidth=25e9))
