"""Is this a well-formed .tflite file? Asked before the generated schema code may touch it.

That code believes every offset, length and index: a damaged file makes it read far away, raise
whatever comes up, or loop for hours. Here the tables that we use are walked with every bound
checked, as the verifier of the FlatBuffers library does in C++. The options of operators are
checked as tables only; what is inside them is plain numbers and short lists.
"""

import struct
from pathlib import Path

from tflite_export import files

IDENTIFIER = b"TFL3"
OTHERS = {  # what a file of another kind begins with -> what to do with it
    b"\x89HDF\r\n\x1a\n": "an HDF5 file: load it by keras.saving.load_model, save the model by "
                           "model.save('model.keras'), and convert that",
    b"PK\x03\x04": "a zip archive, as .keras files are: convert it first, by "
                   "tflite_export.convert(path) or python -m tflite_export PATH -o OUT.tflite",
}

# Table -> {number of a field: what it refers to}. Fields with plain numbers need no check but their
# place. A string is "text", a list of numbers has their size, a list of tables the table's name in
# a list; "options" is a table of any kind.
TABLES = {
    "Model": {1: ["OperatorCode"], 2: ["SubGraph"], 3: "text", 4: ["Buffer"], 5: 4,
              6: ["Metadata"], 7: ["SignatureDef"], 8: ["Options"], 9: ["Options"]},
    "OperatorCode": {1: "text"},
    "SubGraph": {0: ["Tensor"], 1: 4, 2: 4, 3: ["Operator"], 4: "text"},
    "Tensor": {0: 4, 3: "text", 4: "Quantization", 6: "Sparsity", 7: 4, 9: ["Variant"]},
    "Variant": {0: 4},
    "Quantization": {0: 4, 1: 4, 2: 4, 3: 8, 5: "Options"},
    "Sparsity": {0: 4, 1: 4, 2: ["Dimension"]},
    "Dimension": {3: "Indices segments", 5: "Indices"},
    "Operator": {1: 4, 2: 4, 4: "Options", 5: 1, 7: 1, 8: 4, 12: "Options"},
    "Buffer": {0: 1},
    "Metadata": {0: "text"},
    "SignatureDef": {0: ["TensorMap"], 1: ["TensorMap"], 2: "text"},
    "TensorMap": {0: "text"},
    "Options": {},
}
INDEX_SIZES = {1: 4, 2: 2, 3: 1}  # SparseIndexVector: Int32Vector, Uint16Vector, Uint8Vector
DEPTH = 8  # of tables inside tables; the schema needs 5


class Damaged(ValueError):
    """What is wrong with the file."""


def read(path):
    """The bytes of a .tflite file.

    Raises:
      OSError: there is no file at the path.
      ValueError: as `check`.
    """
    files.refuse_missing(path, "a .tflite file")
    content = Path(path).read_bytes()
    check(content, path)
    return content


def check(tflite, name=None):
    """Raises ValueError, with what is wrong, unless every table can be read inside the bytes.

    Args:
      tflite: bytes.
      name: of the file, for errors.
    """
    if len(tflite) < 8 or bytes(tflite[4:8]) != IDENTIFIER:
        for beginning, kind in OTHERS.items():
            if bytes(tflite[:8]).startswith(beginning):
                raise ValueError(f"Not a .tflite file: {name or 'it'} is {kind}.")
        where = f"bytes 4 to 8 of {name}" if name else "its bytes 4 to 8"
        raise ValueError(f"Not a .tflite file: {where} are {bytes(tflite[4:8])!r}, not "
                         f"{IDENTIFIER!r}.")
    try:
        _Walk(tflite).table(_reference(tflite, 0), "Model", 0)
    except Damaged as error:
        raise ValueError(
            f"{name or 'The .tflite file'} is damaged or cut off: {error}.") from None


def _number(data, position, kind):
    try:
        return struct.unpack_from(kind, data, position)[0]
    except struct.error:
        raise Damaged(f"byte {position} of {len(data)} is needed") from None


def _reference(data, position):
    return position + _number(data, position, "<I")


class _Walk:
    def __init__(self, data):
        self.data = data
        self.left = 4 * len(data)  # visits: tables may be shared, but not to blow up a small file

    def table(self, position, name, depth):
        self.left -= 1
        if depth > DEPTH or self.left < 0:
            raise Damaged("its tables refer to each other without end")
        vtable = position - _number(self.data, position, "<i")
        if vtable < 0:
            raise Damaged(f"the table {name} at byte {position} has no beginning")
        size, inline = _number(self.data, vtable, "<H"), _number(self.data, vtable + 2, "<H")
        if (size < 4 or size % 2 or vtable + size > len(self.data)
                or position + inline > len(self.data)):
            raise Damaged(f"the table {name} at byte {position} does not fit")
        places = {}
        for field in range((size - 4) // 2):
            offset = _number(self.data, vtable + 4 + 2 * field, "<H")
            if offset >= inline and offset:
                raise Damaged(f"a field of the table {name} at byte {position} is outside it")
            if offset:
                places[field] = position + offset
        for field, target in TABLES[name].items():
            if field in places:
                self.field(places, field, target, depth)

    def field(self, places, field, target, depth):
        start = _reference(self.data, places[field])
        if isinstance(target, list):
            for place in self.list(start, 4):
                self.table(_reference(self.data, place), target[0], depth + 1)
        elif target == "text":
            self.list(start, 1)
        elif isinstance(target, int):
            self.list(start, target)
        elif target.startswith("Indices"):
            kind = places.get(field - 1)
            kind = 0 if kind is None else _number(self.data, kind, "<B")
            if kind not in INDEX_SIZES:
                raise Damaged(f"a sparse dimension has indices of the unknown kind {kind}")
            self.indices(start, INDEX_SIZES[kind])
        else:
            self.table(start, target, depth + 1)

    def indices(self, position, size):
        """A table whose only field is a list of numbers."""
        self.table(position, "Options", 0)
        vtable = position - _number(self.data, position, "<i")
        if _number(self.data, vtable, "<H") > 4:
            offset = _number(self.data, vtable + 4, "<H")
            if offset:
                self.list(_reference(self.data, position + offset), size)

    def list(self, position, size):
        """The places of its elements."""
        length = _number(self.data, position, "<I")
        end = position + 4 + length * size
        if end > len(self.data):
            raise Damaged(f"the list at byte {position} has {length} elements, which would end "
                          f"at byte {end} of {len(self.data)}")
        return range(position + 4, end, size)
