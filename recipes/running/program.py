"""How a command ends: with a status, and a sentence in place of a traceback."""

import sys


def status(call):
    """The exit status of `call()`: what it returns, or 0 for None; 2 after a sentence on stderr if
    it refuses or a file cannot be had, 130 after an interrupt from the keyboard."""
    try:
        return call() or 0
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. The same command again goes on from the last backup, if there is "
              "one.", file=sys.stderr)
        return 130
