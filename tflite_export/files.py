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
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(partial)
        if isinstance(error, OSError) and error.errno:  # it names `partial`, which nobody knows
            raise OSError(error.errno, error.strerror, path) from error
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
    """Raises an OSError if `path` is a folder, or in one that cannot be written to."""
    if os.path.isdir(path) or not os.path.basename(path):
        raise IsADirectoryError(f"{path!r} is a folder: give the name of a file in it.")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"The folder of {path} is not there.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"The folder of {path} may not be written to: write to another one, "
                              "or change its permissions.")


def refuse_overwrite(path, overwrite=False):
    """Raises FileExistsError if `path` is there and must not be replaced."""
    if os.path.exists(path) and not overwrite:
        raise FileExistsError(
            f"{path} exists already; to replace it, say overwrite=True, or --overwrite on the "
            "command line."
        )
