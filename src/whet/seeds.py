"""One seed tree: every random choice is drawn from the run's seed and the path of what it is for.

Nothing keeps a generator between steps, so a resumed run needs no generator state, and a sample does not depend
on which other samples were drawn beside it.
"""

from __future__ import annotations

import hashlib
import random


def seed_for(seed: int, *path: object) -> int:
    """A 63-bit seed for `path` (strings, integers) below the run's `seed`; the same in every process."""
    text = "/".join([str(seed), *map(str, path)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def rng_for(seed: int, *path: object) -> random.Random:
    """A Python generator for `path` below `seed`."""
    return random.Random(seed_for(seed, *path))
