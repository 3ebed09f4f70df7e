"""Seeds: every random choice of a run has a seed of its own, derived from the run's seed and the choice's name."""

import hashlib


def derive_seed(seed: int, name: str) -> int:
    """Derive the seed of one purpose from a seed that several purposes share.

    The seed is a hash, so purposes do not correlate, whatever seeds a user chooses: with ``seed + 1`` one purpose of
    the run with seed 0 would draw the same numbers as another purpose of the run with seed 1. The result is the same
    on every machine and with every version of Python.

    Args:
        seed: The seed of the run, or one that was derived from it.
        name: What the new seed is for, such as ``"sft"`` or ``"shard 3"``.

    Returns:
        An integer from 0 to 2**31 − 1: the first four bytes of the SHA-256 of ``f"{seed}/{name}"``, big-endian, modulo
        2**31.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 2**31
