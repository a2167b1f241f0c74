"""The built wheel, installed where the checkout cannot be seen, works."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

USE = """
import sys
import keras, numpy as np
import tf_sparsity as ts, tflite_export
for package in (ts, tflite_export):
    assert package.__file__.startswith(sys.argv[1]), package.__file__
model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32)])
sparse = ts.sparsify(model, ts.MagnitudePruning(ts.ConstantSparsity(0.9, 0)))
ts.update(sparse)
exported = tflite_export.convert(ts.strip(sparse))
assert exported.report.is_sparse
assert tflite_export.compare(sparse, exported.tflite, np.ones((2, 64))) < 1e-5
print("works")
"""


def run(*command, cwd, **env):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | env
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, cwd=cwd, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the sources: a build/ folder of an earlier run must not get into it."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "tf_sparsity", "tflite_export", "recipes"):
        files = [ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*.py")
        for file in files:
            copy = source / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", "out", cwd=source)
    (built,) = (source / "out").glob("*.whl")
    return built


def test_the_wheel_holds_both_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {n for n in names if ".dist-info/" not in n}
    expected = {
        str(file.relative_to(ROOT))
        for package in ("tf_sparsity", "tflite_export")
        for file in (ROOT / package).rglob("*.py")
    }
    assert shipped == expected


def test_the_installed_wheel_works_elsewhere(wheel, tmp_path):
    target, elsewhere = tmp_path / "target", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"),
        *("install", "--no-deps", "--target", str(target), str(wheel)),
        cwd=elsewhere,
    )
    printed = run(sys.executable, "-c", USE, str(target), cwd=elsewhere, PYTHONPATH=str(target))
    assert printed == "works\n"
    help_text = run(
        sys.executable, "-m", "tflite_export", "--help", cwd=elsewhere, PYTHONPATH=str(target)
    )
    assert "python -m tflite_export MODEL -o OUT.tflite" in help_text
