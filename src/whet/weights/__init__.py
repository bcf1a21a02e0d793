"""Weights: which parameters move, and how."""

from whet.weights.weights import Lora, Weights, get_weights

__all__ = ["Lora", "Weights", "get_weights"]
