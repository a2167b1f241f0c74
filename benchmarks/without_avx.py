"""Hides AVX from the XNNPACK of this process, so that it takes the sparse path that phones take.

For measurements only. XNNPACK runs convolutions sparse on ARM and on x86 without AVX; it keeps what
the processor has in one word of memory, which is changed here before any kernel is chosen. Dense
and sparse kernels are then those for SSE.
"""

import ctypes
import functools
from pathlib import Path

import numpy as np

LIBRARY = "libpywrap_litert_common.so"
# XNNPACK's flags of x86, from the lowest bit: SSE, SSE2, SSSE3, SSE4.1, AVX, F16C, FMA3, AVX2, ...
SSE, AVX = 0b1111, 0b1_1111
KNOWN = 1 << 24  # flags are below that


@functools.cache
def nothing_but_floor():
    """A file whose only operator needs no kernel that is chosen by these flags."""
    import keras
    from keras import layers, ops

    from benchmarks.tflite_size import converted
    return converted(keras.Sequential([keras.Input((4,)), layers.Lambda(ops.floor)]), sparse=False)


def hide(floor):
    """Call it in a new process, before it loads another file.

    Args:
      floor: the bytes of `nothing_but_floor`; running it makes XNNPACK read the flags.

    Raises:
      RuntimeError: where the flags are not found: no Linux, no AVX, another build of LiteRT.
    """
    from tflite_export.runner import Runner
    Runner(floor).run()
    found = [address for start, end in _static_memory() for address in _flags(start, end)]
    if len(found) != 1:
        raise RuntimeError(f"the words in {LIBRARY} that look like XNNPACK's flags are "
                           f"{len(found)}; one is expected (Linux, x86 with AVX, LiteRT 2.3)")
    ctypes.c_uint64.from_address(found[0]).value = SSE


def _static_memory():
    """[(start, end)] of the library's writable memory, with what follows it without a name."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except FileNotFoundError as error:
        raise RuntimeError("there is no /proc/self/maps: this needs Linux") from error
    regions, inside = [], False
    for line in lines:
        place, rights, _, _, _, *name = line.split()
        inside = LIBRARY in name[0] if name else inside
        if inside and "w" in rights:
            regions.append(tuple(int(end, 16) for end in place.split("-")))
    return regions


def _flags(start, end):
    """Addresses of words with all bits from SSE to AVX2, followed by a cache's size and line."""
    words = np.frombuffer((ctypes.c_char * (end - start)).from_address(start), np.uint64)
    alike = (words & np.uint64(0xFFF) | np.uint64(0xF00)) == np.uint64(0xFFF)
    lines = np.roll(words, -2) == 64
    return [start + 8 * int(i) for i in np.nonzero(alike & lines & (words < KNOWN))[0]]
