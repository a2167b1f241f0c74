"""What tells runs on one data set from runs on another, wherever it lies."""

import hashlib

import numpy as np


def fingerprint(*parts):
    """12 hexadecimal digits of a hash of arrays (values, types and shapes) and lists of lines."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype} {part.shape}\n".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(f"{len(part)} lines\n".encode())
            for line in part:
                digest.update(line.encode() + b"\n")
    return digest.hexdigest()[:12]
