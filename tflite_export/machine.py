"""What the processor of this machine means for sparse files."""

import platform
from pathlib import Path


def runs_sparse_convolutions():
    """Whether XNNPACK runs convolutions sparse here: it does not on x86 with AVX.

    Returns:
        True or False; None where this cannot be told.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686", "x86"):
        return True
    flags = _flags()
    return None if flags is None else "avx" not in flags


def _flags():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((set(line.split()) for line in lines if line.startswith("flags")), None)
