"""TensorFlow's start-up lines kept off the terminal; for command lines, which own their process."""

import contextlib
import os
import sys


@contextlib.contextmanager
def quiet():
    """Drops what is written to stderr inside the block; what is wrong must come as an exception.

    TensorFlow's and LiteRT's C++ code writes some lines there when it is first imported and used,
    whatever TF_CPP_MIN_LOG_LEVEL says. Works on the file descriptor, hence on the whole process.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
