"""Files written whole or not at all."""

import contextlib
import os


def write(path, data, *, overwrite=False):
    """Writes bytes to `path`, whole or not at all, and returns the path as text."""
    path = os.fspath(path)
    refuse_no_place(path)
    refuse_overwrite(path, overwrite)
    partial = f"{path}.{os.getpid()}.partial"
    try:
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(partial)
        raise
    return path


def refuse_missing(path, expected):
    """Raises an OSError unless there is a file at `path`; `expected` says of which kind."""
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder: give the path of {expected}.")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} is not there, or is not a file: give the path of "
                                f"{expected}.")


def refuse_no_place(path):
    """Raises an OSError if `path` is a folder, or in one that is not there."""
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder: give the name of a file in it.")
    if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise FileNotFoundError(f"The folder of {path} is not there.")


def refuse_overwrite(path, overwrite=False):
    """Raises FileExistsError if `path` is there and must not be replaced."""
    if os.path.exists(path) and not overwrite:
        raise FileExistsError(
            f"{path} exists already; to replace it, say overwrite=True, or --overwrite on the "
            "command line."
        )
