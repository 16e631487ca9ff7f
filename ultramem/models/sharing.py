"""Which table a memory unit reads, and from which row on: tables of its own, or shared between units.

UltraMemV2 (arXiv 2508.18756) shares by ring and by block, Memory+ (arXiv 2412.09764) one table among all. A table has
one owner; its units are given their window of it.
"""

from typing import NamedTuple

from ultramem.models.configuration_ultramem import UltraMemConfig


class Window(NamedTuple):
    """What of which table a unit reads."""

    table: int
    """Index among the model's tables."""
    first_row: int
    """Where the unit's rows begin; behind the table's last row they go on at row 0."""


def unit_windows(config: UltraMemConfig) -> list[Window]:
    """The window of every memory unit.

    Example:
        >>> sizes = dict(memory_num_keys=8, memory_key_size=8, memory_value_size=8, memory_top_k=4)
        >>> units = ["1:1", "2:2", "3:3", "4:4"]
        >>> ring = dict(memory_sharing="ring", memory_window=2)
        >>> config = UltraMemConfig(memory="ultramem", memory_units=units, **sizes, **ring)
        >>> [window.first_row for window in unit_windows(config)]
        [0, 64, 128, 192]
    """
    units = range(len(config.memory_units))
    if config.memory_sharing == "own":
        return [Window(unit, 0) for unit in units]
    if config.memory_sharing == "block":
        return [Window(unit // config.memory_window, 0) for unit in units]
    if config.memory_sharing == "all":
        return [Window(0, 0) for _ in units]
    assert config.memory_num_keys is not None  # checked by the config
    return [Window(0, unit * config.memory_num_keys**2) for unit in units]


def table_rows(config: UltraMemConfig) -> list[int]:
    """How many rows every table of the model has."""
    if not config.memory_units:
        return []
    assert config.memory_num_keys is not None  # checked by the config
    own_rows, units = config.memory_num_keys**2, len(config.memory_units)
    return {
        "own": [own_rows] * units,
        "block": [config.memory_window * own_rows] * (units // config.memory_window),
        "all": [own_rows],
        "ring": [units * own_rows],
    }[config.memory_sharing]
