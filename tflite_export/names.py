"""Names of tensors for people: TensorFlow's converter strings together all that it has fused."""

import re

LONGEST = 48


def short(name):
    """The last of the fused names, cut at its beginning if it is long."""
    pieces = [piece for piece in name.split(";") if piece] or [name]
    last = pieces[-1]
    if last.startswith("/") and len(pieces) > 1:  # put behind a name that ends with a semicolon
        last = pieces[-2] + last
    return last if len(last) <= LONGEST else f"...{last[3 - LONGEST:]}"


def short_in(text):
    """`text` with every name in quotation marks made short."""
    return re.sub(r"'([^']*)'", lambda found: f"'{short(found[1])}'", text)
