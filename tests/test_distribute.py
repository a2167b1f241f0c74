"""MirroredStrategy over two virtual CPUs trains as one CPU does."""

import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow",
                                reason="MirroredStrategy is TensorFlow's")

SCRIPT = """
    import sys
    import tensorflow as tf
    two = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [two] * 2)
    import contextlib
    import keras
    import numpy as np
    import tf_sparsity as ts

    class Growing(ts.MaskMethod):
        '''Regrows by the dense gradients that the optimizer saw in the last step.'''
        needs_probe = regrows = True

        def scores(self, weight, gradient, seed):
            return np.abs(gradient)

    x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    y = np.random.default_rng(1).normal(size=(32, 3)).astype("float32")
    arrays = {}

    def train(strategy, host, method, optimizer, forgotten=False):
        keras.utils.set_random_seed(0)
        with strategy.scope() if strategy else contextlib.nullcontext():
            model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, "tanh"),
                                      keras.layers.Dense(3)])
            if host == "layers":
                model = ts.sparsify(model, method)
                model.compile(optimizer(), "mse")
            else:
                model.compile(ts.SparseOptimizer(optimizer(), method), "mse")
        if strategy and forgotten:
            try:
                model.fit(x, y, batch_size=16, verbose=0)
            except ValueError as error:
                assert "nothing updates" in str(error), error
            else:
                raise AssertionError("no error without the callback")
        model.fit(x, y, batch_size=16, epochs=3, shuffle=False, verbose=0,
                  callbacks=[ts.callbacks.SparsityUpdate()])
        report = ts.report(model)
        if host == "layers":
            model = ts.strip(model)
        return [report.sparsity, *map(np.array, model.get_weights())]

    def momentum(**kwargs):
        return keras.optimizers.SGD(0.05, momentum=0.9, **kwargs)

    schedule = ts.PolynomialDecay(0.25, 0.75, 1, 5, frequency=1)
    magnitude = ts.MagnitudePruning(schedule)
    cases = {
        "layers": lambda s: train(s, "layers", magnitude, momentum),
        "layers after an error": lambda s: train(s, "layers", magnitude, momentum, forgotten=True),
        "optimizer": lambda s: train(s, "optimizer", magnitude, momentum),
        "optimizer after an error": lambda s: train(s, "optimizer", magnitude, momentum,
                                                    forgotten=True),
        "weight decay": lambda s: train(s, "optimizer", magnitude,
                                        lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1)),
        "averaged": lambda s: train(s, "optimizer", magnitude,
                                    lambda: momentum(use_ema=True, ema_momentum=0.9)),
        "scaled": lambda s: train(s, "optimizer", magnitude,
                                  lambda: keras.optimizers.LossScaleOptimizer(momentum())),
        "growing": lambda s: train(s, "optimizer", Growing(schedule), momentum),
    }
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    assert strategy.num_replicas_in_sync == 2
    for name, case in cases.items():
        for kind, where in (("one", None), ("two", strategy)):
            for i, array in enumerate(case(where)):
                arrays[f"{name}/{kind}/{i}"] = array
    np.savez(sys.argv[1], **arrays)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distribute")
    (folder / "script.py").write_text(textwrap.dedent(SCRIPT))
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow",
                   "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "script.py", "out.npz"], cwd=folder, env=environment,
                          capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(folder / "out.npz")


@pytest.mark.parametrize("case", [
    "layers", "layers after an error", "optimizer", "optimizer after an error", "weight decay",
    "averaged", "scaled", "growing"])
def test_two_replicas_train_as_one(results, case):
    one, two = ([results[key] for key in results.files if key.startswith(f"{case}/{kind}/")]
                for kind in ("one", "two"))
    assert len(one) == len(two) == 5
    assert one[0] == two[0] == 0.75
    for a, b in zip(one[1:], two[1:]):
        np.testing.assert_array_equal(a == 0, b == 0)
        # the two halves of a batch are summed in another order; six steps
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)
