"""Files that are there as a whole or not at all, and folders for one process at a time."""

import contextlib
import json
import os
from pathlib import Path


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
    return json.loads(Path(path).read_text())


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
