"""Damaged .tflite files."""

import numpy as np


def mutated(tflite, rng):
    """The file with one to eight bytes changed, mostly where the tables are."""
    data = bytearray(tflite)
    for _ in range(rng.integers(1, 9)):
        at = rng.integers(len(data))
        kind = rng.integers(3)
        if kind == 0:
            data[at] = rng.integers(256)
        elif kind == 1:
            data[at] ^= 1 << rng.integers(8)
        else:
            data[at:at + 4] = int(rng.choice([0, 1, 2**31 - 1, 2**32 - 1, len(data)])).to_bytes(
                4, "little")
    return bytes(data)


def refusals(read, tflite, count, seed):
    """How many of so many damaged copies `read` refuses with a ValueError; any other error is
    the test's."""
    rng, refused = np.random.default_rng(seed), 0
    for _ in range(count):
        try:
            read(mutated(tflite, rng))
        except ValueError:
            refused += 1
    return refused
