"""What every test has: a quiet TensorFlow on the CPU, the backend of KERAS_BACKEND, a seed."""

import os
import pathlib

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before the first import of TensorFlow
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same numbers on every machine
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests make the same model again and again: JAX compiles it once. Read when JAX is imported.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR",
                      str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import hypothesis
import keras
import pytest

hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.name == "test_contract.py":
            item.add_marker("any_backend")


@pytest.fixture(autouse=True)
def seed():
    """Python's, NumPy's and the backend's generators start every test in the same state."""
    keras.utils.set_random_seed(0)
    return 0
