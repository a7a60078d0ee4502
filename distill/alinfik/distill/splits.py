"""Divides labelled samples into those to train on, to calibrate with, and to hold out.

The part of a sample follows from its group alone, so that `evaluate` finds the rows that `train`
held out, and copies of a text never stand on both sides.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

Part = Literal["train", "calibration", "held_out"]

HELD_OUT_SHARE = 0.2
CALIBRATION_SHARE = 0.15


def part_of(group: str) -> Part:
    """Return the part that a group belongs to."""
    digest = hashlib.sha256(f"alinfik split 1:{group}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < HELD_OUT_SHARE:
        return "held_out"
    if position < HELD_OUT_SHARE + CALIBRATION_SHARE:
        return "calibration"
    return "train"


def indices_of(groups: Sequence[str], part: Part) -> list[int]:
    """Return where the samples of one part stand."""
    return [index for index, group in enumerate(groups) if part_of(group) == part]
