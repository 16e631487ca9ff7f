"""Optimization for models with memory tables: parameter groups, schedules, clipping and the tables' own optimizer."""

from ultramem.optim.clip import clip_factor, clip_gradients, clipped_step, gradient_norm
from ultramem.optim.groups import parameter_groups
from ultramem.optim.row_adam import RowAdamW
from ultramem.optim.schedules import Constant, Cosine, Schedule, TableMultiplier, WarmupStableDecay

__all__ = [
    "Constant",
    "Cosine",
    "RowAdamW",
    "Schedule",
    "TableMultiplier",
    "WarmupStableDecay",
    "clip_factor",
    "clip_gradients",
    "clipped_step",
    "gradient_norm",
    "parameter_groups",
]
