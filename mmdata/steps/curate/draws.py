"""Chance that repeats: numbers that depend only on the seed and on what they are drawn for.

So a sample's draw stays when others come, and who is chosen by order of the draw stays for as long as there is room.
"""

from __future__ import annotations


def unit_interval(seed: int, column: str) -> str:
    """SQL of a number in [0, 1) that depends only on the seed and the column: 32 bits of MD5."""
    return f"(('0x' || substr(md5('{seed}:' || {column}), 1, 8))::UBIGINT / 4294967296.0)"


def shuffled(seed: int) -> str:
    """SQL of an order of samples that is as good as any other, the same for all steps: who is first stays first."""
    return f"md5('{seed}:draw:' || sample_id)"
