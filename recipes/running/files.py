"""Files that are there as a whole or not at all, and folders for one process at a time."""

import contextlib
import json
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np


@contextlib.contextmanager
def replacing(path):
    """Yields a path to write to; the file takes its real name when it is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{os.getpid()}.{path.name}")  # the same ending: writers look at it
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def write_json(path, value):
    with replacing(path) as new:
        new.write_text(json.dumps(value, indent=1) + "\n")


def read_json(path):
    """The dict of a JSON file.

    Raises:
      ValueError: if the file is damaged.
    """
    try:
        value = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}. Remove it, or put a copy of it back."
                         ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(value).__name__}, where a dict is "
                         "expected. Remove it, or put a copy of it back.")
    return value


def read_arrays(path, remedy):
    """{name: array} of an .npz file.

    Raises:
      ValueError: with the remedy, if the file is not there or damaged.
    """
    try:
        with open(path, "rb") as file, np.load(file) as arrays:
            return dict(arrays)
    except (EOFError, OSError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        missing = isinstance(error, FileNotFoundError)
        why = "is not there" if missing else "is no .npz file of arrays"
        raise ValueError(f"{path} {why}. {remedy}") from error


@contextlib.contextmanager
def alone(folder, title):
    """One process at a time uses the folder; a killed one leaves nothing locked."""
    import fcntl  # POSIX only

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{title}: waiting for another process that runs it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        print(os.getpid(), file=lock, flush=True)  # for people who look
        yield
