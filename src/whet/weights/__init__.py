"""Weights: which parameters move, and how."""

from whet.weights.masked import Masked, Packed
from whet.weights.menu import choice, get_weights, menu
from whet.weights.weights import Cost, Lora, Weights

__all__ = ["Cost", "Lora", "Masked", "Packed", "Weights", "choice", "get_weights", "menu"]
