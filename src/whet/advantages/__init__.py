"""Advantages: an estimator and an ordered list of transforms turn rewards into per-token advantages."""

from whet.advantages import transforms
from whet.advantages.estimators import (
    Estimator,
    batch_std,
    batch_whiten,
    group_mean,
    group_std,
    normalise_then_sum,
    process_supervised,
    raw,
    reinforce_plus_plus,
    remax,
    rloo,
)
from whet.advantages.gae import AdaptiveKL, explained_variance, gae, generalized_advantage
from whet.advantages.transforms import filter_overlong, top_entropy, weighted

__all__ = [
    "AdaptiveKL",
    "Estimator",
    "batch_std",
    "batch_whiten",
    "explained_variance",
    "filter_overlong",
    "gae",
    "generalized_advantage",
    "group_mean",
    "group_std",
    "normalise_then_sum",
    "process_supervised",
    "raw",
    "reinforce_plus_plus",
    "remax",
    "rloo",
    "top_entropy",
    "transforms",
    "weighted",
]
