"""Functions called in a process of their own: a crash or a hang there is an answer, not the end.

The runtime believes the file that it is given, and a wrong one may end the process. TensorFlow's
converter wants another Keras backend than the one that a model lives on. Both get a child.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """What became of a call."""

    value: Any = None  # what the function returned
    failure: str | None = None  # why there is no value, as a part of a sentence
    notes: tuple = ()  # what the function noted on its way, in order


def call(function, *arguments, limit, environment=None):
    """`function(note, *arguments)` in a new Python process.

    Args:
        function: one of a module, which the child imports by its name. Its first argument is a
            function that notes something on the way; the notes survive a crash.
        arguments: picklable.
        limit: seconds after which the child is ended.
        environment: variables that the child has beside this process's.

    Returns:
        Answer.

    Example:
        >>> from tflite_export import child
        >>> child.call(child.echo, "a", limit=60)
        Answer(value='a', failure=None, notes=('echoing',))
    """
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "call").write_bytes(pickle.dumps((function, arguments)))
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            **(environment or {}),
        }
        command = [sys.executable, "-c", "from tflite_export import child; child.serve()"]
        try:
            done = subprocess.run(
                [*command, str(folder)], env=environment, capture_output=True, timeout=limit
            )
        except subprocess.TimeoutExpired:
            failure = f"it did not end within {limit:g} seconds"
        else:
            failure = _failure(done)
        notes = _pickles(folder / "notes")
        result = _pickles(folder / "result")
    if not result:
        return Answer(failure=failure, notes=tuple(notes))
    value, error = result[0]
    return Answer(value, error, tuple(notes))


def echo(note, value):
    """Returns `value`; for the example above."""
    note("echoing")
    return value


def serve():
    """What the child does: `sys.argv[1]` is the folder of the call."""
    folder = Path(sys.argv[1])
    function, arguments = pickle.loads((folder / "call").read_bytes())

    def note(value):
        with open(folder / "notes", "ab") as file:
            pickle.dump(value, file)

    try:
        result = function(note, *arguments), None
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        result = None, text
    (folder / "result").write_bytes(pickle.dumps(result))


def _failure(done):
    if done.returncode < 0:
        return f"its process was ended by {signal.Signals(-done.returncode).name}"
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return f"its process ended with the status {done.returncode}: {said[-1] if said else ''}"


def _pickles(path):
    """What was written whole: a child that is ended while it writes leaves a piece."""
    values = []
    if path.exists():
        with open(path, "rb") as file, contextlib.suppress(EOFError, pickle.UnpicklingError):
            while file.peek(1):
                values.append(pickle.load(file))
    return values
