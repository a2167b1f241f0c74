"""Modules of the exporter import one way, in the order of docs/tflite.md."""

import ast
import re
from pathlib import Path

import tflite_export

PACKAGE = Path(tflite_export.__file__).parent
DOCUMENT = PACKAGE.parent / "docs" / "tflite.md"


def imported(path):
    """The modules of the package that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "tflite_export":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tflite_export."):
            found.add(node.module.split(".")[1])
    return found


def test_imports_point_one_way_and_every_module_is_described():
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| [^|]+ \|$",
                      DOCUMENT.read_text().partition("## Where things are")[2], re.MULTILINE)
    order = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert set(order) == modules and len(order) == len(modules)
    for place, module in enumerate(order):
        later = imported(PACKAGE / f"{module}.py") & modules - set(order[:place])
        assert not later, f"{module} imports {sorted(later)}"
