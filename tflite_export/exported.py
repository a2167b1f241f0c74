"""What a conversion gives back."""

from typing import NamedTuple

from tflite_export import files
from tflite_export.report import Report


class Exported(NamedTuple):
    """A converted model."""

    tflite: bytes
    report: Report

    def __repr__(self):
        return f"Exported({len(self.tflite):,} bytes: {self.report.reason})"

    def save(self, path, *, overwrite=False):
        """Writes the file whole or not at all, and returns its path.

        Args:
            path: where; the folder must exist.
            overwrite: replace a file that is there.

        Raises:
            FileExistsError: there is one and `overwrite` is False.
            OSError: it cannot be written there; the sentence says why.
        """
        return files.write(path, self.tflite, overwrite=overwrite)
