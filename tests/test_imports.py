"""Dependencies point one way, and importing the package stays light."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

import tf_sparsity

ROOT = pathlib.Path(tf_sparsity.__file__).parent
REPOSITORY = ROOT.parent

# module (or package) -> what it imports of tf_sparsity, exactly. Leaves first; no cycles.
ALLOWED = {
    "schedule": set(), "distribution": set(), "masks": set(), "train_step": set(), "relax": set(),
    "method": {"schedule", "distribution", "masks"},
    "selection": {"method"},
    "learned": {"method", "masks", "schedule"},
    "methods": {"method", "schedule", "learned", "relax"},
    "layers": {"method", "train_step"},
    "optimizer": {"method", "selection", "train_step"},
    "tfmot": {"method", "schedule"},
    "kernels": {"method", "selection", "layers"},
    "convert": {"method", "methods", "selection", "layers", "optimizer", "kernels"},
    "probes": {"layers"},
    "update": {"method", "layers", "optimizer", "kernels", "probes"},
    "report": {"method", "layers", "optimizer", "kernels", "convert"},
    "tensorboard": {"report"},
    "callbacks": {"optimizer", "probes", "update", "report", "tensorboard"},
    "tickets": {"method", "methods", "masks", "layers", "optimizer", "kernels", "convert",
                "callbacks"},
    "tuning": {"method", "methods", "schedule", "kernels", "convert", "report", "callbacks"},
}


# The same of recipes/: what its recipes have in common
RECIPES = {"running": set(), "reporting": {"running"}, "networks": {"running"},
           "data": {"running", "networks"},
           "shared": {"running", "reporting", "networks", "data"}}


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0]


def imported_names(path):
    """Full names imported anywhere in a file, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports(path):
    """The modules of this package that a file imports."""
    return {name.split(".")[1] for name in imported_names(path)
            if name.startswith("tf_sparsity.")}


@pytest.mark.parametrize("package", RECIPES)
def test_what_recipes_share_depends_one_way(package):
    found = {name.split(".")[1] for path in (REPOSITORY / "recipes" / package).glob("*.py")
             for name in imported_names(path) if name.startswith("recipes.")}
    assert found - {package} == RECIPES[package]


@pytest.mark.parametrize("module", ALLOWED)
def test_dependencies_are_those_of_the_table(module):
    found = set().union(*(imports(path) for path in ROOT.rglob("*.py")
                          if path != ROOT / "__init__.py" and module_of(path) == module))
    assert found - {module} == ALLOWED[module]


def test_the_table_is_complete_and_points_one_way():
    assert {module_of(p) for p in ROOT.rglob("*.py")} - {"__init__"} == set(ALLOWED)
    order = list(ALLOWED)
    for module, allowed in ALLOWED.items():
        assert all(order.index(other) < order.index(module) for other in allowed), module


def test_methods_do_not_import_each_other():
    for path in (ROOT / "methods").glob("*.py"):
        if path.name != "__init__.py":
            assert "methods" not in imports(path), path.name


def test_the_exporter_does_not_know_the_package():
    for path in (REPOSITORY / "tflite_export").glob("*.py"):
        if path.name != "__main__.py":  # which registers the classes of saved models
            assert not any(n.split(".")[0] == "tf_sparsity" for n in imported_names(path)), path


def run(code, **env):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300,
                          cwd=REPOSITORY, env={**os.environ, **env})


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"tensorflow", "tf_keras", "tensorflow_model_optimization"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Block())
"""

FIT_ON_JAX = BLOCK + """
import keras, numpy as np, tf_sparsity as ts
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
model = ts.sparsify(model, ts.MagnitudePruning(ts.ConstantSparsity(0.5, 1)))
model.compile("sgd", "mse")
model.fit(np.ones((8, 4)), np.ones((8, 4)), batch_size=2, verbose=0,
          callbacks=[ts.callbacks.SparsityUpdate()])
assert ts.report(model).sparsity == 0.5
assert "tensorflow" not in sys.modules
print("fitted")
"""


def test_fits_on_jax_without_tensorflow():
    done = run(FIT_ON_JAX, KERAS_BACKEND="jax")
    assert done.stdout.strip() == "fitted", done.stderr


def test_the_block_works():
    done = run(BLOCK + "import tensorflow", KERAS_BACKEND="jax")
    assert done.returncode != 0 and "No module named 'tensorflow'" in done.stderr


def test_import_is_light():
    heavy = ["tensorflow_model_optimization", "tf_keras", "tensorboard", "tensorflow_datasets",
             "keras_tuner", "tflite_export"]
    done = run("import sys, tf_sparsity; "
               f"print([m for m in {heavy} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_import_changes_nothing_outside():
    done = run("import os; before = dict(os.environ); import tf_sparsity; "
               "import tensorflow as tf, keras; "
               "print(tf.keras.Model is keras.Model, 'TF_USE_LEGACY_KERAS' in os.environ)",
               KERAS_BACKEND="tensorflow")
    assert done.stdout.strip() == "True False", done.stderr
