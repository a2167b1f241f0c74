"""What a conversion did, and what to expect of the file: as a table, as JSON, as a page."""

import math
from typing import NamedTuple

from tflite_export import encode, files, names, page, sizes
from tflite_export.layers import total


class Report(NamedTuple):
    """What a conversion did. Sizes are in bytes; `zipped` ones after zlib at level 6."""

    is_sparse: bool  # whether any weight of the file is stored sparse
    reason: str  # why, in one sentence
    sizes: tuple  # of sizes.Size: the file, the dense one it was made from, and other dtypes
    layers: tuple  # of layers.LayerReport, one per weight
    other_constants: int  # bytes of what is no weight: biases, tables, shapes
    difference: float | None  # greatest |LiteRT - the model| of all outputs, on random inputs; None
    # where LiteRT cannot run the file here, or an output is not finite
    trial: tuple = ()  # of trial.Outcome: the file beside its dense twin
    covered: tuple = ()  # of encode.Covered
    notes: tuple = ()  # what was done to the graph
    turned_inputs: tuple = ()  # names of those that the app has to turn by 180 degrees
    advice: tuple = ()  # sentences: where it will not be faster, what would be
    source: str = ""  # what it was made from, a model's name or a path

    @property
    def bytes(self):
        """Of the file."""
        return self.sizes[0].bytes

    @property
    def zipped(self):
        """Of the file, compressed."""
        return self.sizes[0].zipped

    @property
    def bytes_dense(self):
        """Of the dense float32 file, or of the file given where that is another one."""
        return self._given.bytes

    @property
    def zipped_dense(self):
        """The same, compressed."""
        return self._given.zipped

    @property
    def graph_bytes(self):
        """Of the file, without its constants: the graph, names, scales."""
        return rest(self.bytes, self.layers, self.other_constants)

    @property
    def _given(self):
        return next(size for size in self.sizes if size.file in (sizes.FLOAT32, sizes.GIVEN))

    @property
    def multiply_adds(self):
        """Of one run, zeros included; without products of activations, as in attention."""
        return total(self.layers, "multiply_adds")

    @property
    def expected_multiply_adds(self):
        """Of one run where every layer that can run sparse does."""
        return total(self.layers, "expected_multiply_adds")

    @property
    def said_difference(self):
        """`difference` as text."""
        return "unknown" if self.difference is None else f"{self.difference:.1e}"

    def to_dict(self):
        """The report as JSON takes it."""
        result = self._asdict()
        for field in ("sizes", "trial", "covered"):
            result[field] = [row._asdict() for row in getattr(self, field)]
        for row in result["trial"]:
            if row["difference"] is not None and not math.isfinite(row["difference"]):
                row["difference"] = None  # JSON has no NaN; `passed` says that it is wrong
        result["layers"] = [{**row._asdict(), "shape": list(row.shape)} for row in self.layers]
        result.update(notes=list(self.notes), advice=list(self.advice),
                      turned_inputs=list(self.turned_inputs),
                      multiply_adds=self.multiply_adds,
                      expected_multiply_adds=self.expected_multiply_adds)
        return result

    def save_html(self, path, *, overwrite=False):
        """Writes the report as one page that needs nothing else, and returns its path.

        Args:
            path: where; the folder must exist.
            overwrite: replace a file that is there.

        Raises:
            FileExistsError: there is one and `overwrite` is False.
            OSError: it cannot be written there; the sentence says why.
        """
        return files.write(path, page.html(self).encode(), overwrite=overwrite)

    def __str__(self):
        return "\n".join([
            *table(("file", "bytes", "zipped"),
                   [(s.file, f"{s.bytes:,}", f"{s.zipped:,}") for s in self.sizes]),
            f"this file: {self.reason}",
            *(f"done: {names.short_in(note)}" for note in self.notes),
            "",
            *layer_table(self.layers, self.other_constants, self.bytes),
            "",
            f"multiply-adds: {self.multiply_adds:,}; without the zeros that sparse kernels leave "
            f"out: {self.expected_multiply_adds:,}",
            f"greatest difference of an output from the model's: {self.said_difference}",
            *(f"beside its dense twin, {said(outcome)}" for outcome in self.trial),
            *map(str, encode.joined(self.covered)),
            *(f"note: {sentence}" for sentence in self.advice),
        ])


def said(outcome):
    """A trial's outcome as text."""
    if outcome.failure is not None:
        return f"{outcome.kernels}: {outcome.failure}"
    return f"{outcome.kernels}: {outcome.difference:.1e} of the greatest output"


def rest(size, rows, others):
    """The bytes of a file of `size` bytes that are no constants; two weights in one place are
    counted twice, so that it is 0 at least."""
    return max(0, size - sum(row.bytes for row in rows) - others)


def layer_table(rows, others, size):
    """Lines of a table with a row per weight, one for the bytes of all other constants and one for
    the rest of the file's `size`, and below it why, and what would change it."""
    cells = [(names.short(row.name), row.operator, "x".join(map(str, row.shape)), row.dtype,
              f"{row.sparsity:.4f}", row.encoding, f"{row.bytes_dense:,}", f"{row.bytes:,}",
              f"{row.lower_bound:,}", "sparse" if row.runs_sparse else "dense") for row in rows]
    cells.append(("other constants", *[""] * 5, f"{others:,}", f"{others:,}", "", ""))
    cells.append(("graph, names, scales", *[""] * 6, f"{rest(size, rows, others):,}", "", ""))
    yield from table(("weight", "operator", "shape", "stored as", "zeros", "encoding", "dense",
                      "bytes", "least", "runs"), cells, left=(0, 1, 2, 3, 5, 9))
    groups = {}
    for row in rows:
        groups.setdefault((row.runs_sparse, row.why, row.change), []).append(
            names.short(row.name))
    for (runs, why, change), found in groups.items():
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        help_ = f"; to change it: {change}" if change and not runs else ""
        yield f"{'sparse' if runs else 'dense'}: {found[0]}{more}: {why}{help_}"


def table(heads, rows, left=(0,)):
    """Lines of a plain-text table; columns in `left` are set to the left."""
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    for row in (heads, *rows):
        yield "  ".join(f"{cell:{'<' if i in left else '>'}{width}}"
                        for i, (cell, width) in enumerate(zip(row, widths))).rstrip()
