"""Fewer bits by bitsandbytes: a base of 4 bits under adapters (QLoRA, 2305.14314), and moments of 8 bits (2110.02861)."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from whet.errors import WhetError


def bitsandbytes() -> Any:
    """The library.

    Raises:
        WhetError: it is not installed, or there is no CUDA device for its kernels.
    """
    try:
        found = importlib.import_module("bitsandbytes")
    except ImportError:
        raise WhetError("fewer bits (--quantize nf4, --optimizer adamw8bit) need bitsandbytes, which is not installed: "
                        "pip install 'whet[quant]'") from None  # fmt: skip
    if not torch.cuda.is_available():
        raise WhetError(
            "fewer bits (--quantize nf4, --optimizer adamw8bit) run on CUDA, and no device was found; leave them out"
        )
    return found


def nf4(compute: torch.dtype) -> Any:
    """Transformers' configuration of a 4-bit base: NormalFloat, its scales quantized too, products in `compute`."""
    from transformers import BitsAndBytesConfig

    bitsandbytes()
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=compute)  # fmt: skip
