"""What children of the tests do; light, for every child imports it."""

import os
import pickle
import signal
import sys
import time
from pathlib import Path


def crash(note):
    note("begins")
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(note):
    time.sleep(60)


def fail(note, text):
    raise ValueError(text)


def end_while_writing(note, name, share):
    """A part of a pickle, in the file `name` of the call's folder."""
    note("begins")
    whole = pickle.dumps(([1.5, "two", b"3" * 300, {"four": None}], None))
    with open(Path(sys.argv[1], name), "ab") as file:
        file.write(whole[: int(share * len(whole))])
    os.kill(os.getpid(), signal.SIGKILL)
