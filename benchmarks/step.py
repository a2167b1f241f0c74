"""Time of one training step in `model.fit`: dense, pruned by us on both hosts, pruned by TFMOT.

All models of a case train in one process on one batch that never changes. A round is one `fit` of
each; the time of a step is that between two ends of batches, callbacks included, and a round counts
the median of its steps. TFMOT's wrapper trains a tf_keras twin, and is compared with the dense
Keras 3 model and with the dense twin. Every case has a process of its own, because TensorFlow's
number of threads cannot be changed in a running one.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import tf_sparsity as ts
from benchmarks import measure
from tf_sparsity.tfmot import import_tfmot

ROOT = Path(__file__).parent.parent
SEED = 0
FREQUENCY = 100  # steps between two updates of the masks
SCHEDULE = {"initial_sparsity": 0.7, "final_sparsity": 0.8, "begin_step": 0, "end_step": 1000,
            "frequency": FREQUENCY}  # longer than the run: it updates to its end
STEPS = 20  # of a round
BASELINE, TWIN = "dense", "dense tf_keras"
LAYERS, OPTIMIZER, TFMOT = "layer host", "optimizer host", "TFMOT"
GOALS = {("CNN", LAYERS): 1.05, ("CNN", OPTIMIZER): 1.05,
         ("MLP", LAYERS): 1.1, ("MLP", OPTIMIZER): 1.05}  # x the dense step
CASES = [  # threads 0: as many as TensorFlow likes
    {"model": "CNN", "optimizer": "SGD", "threads": 1, "rounds": 12},
    {"model": "MLP", "optimizer": "SGD", "threads": 1, "rounds": 24},
    {"model": "MLP", "optimizer": "Adam", "threads": 1, "rounds": 24},
    {"model": "CNN", "optimizer": "SGD", "threads": 0, "rounds": 12},
    {"model": "MLP", "optimizer": "SGD", "threads": 0, "rounds": 24},
]
SMALL = [{"model": "tiny", "optimizer": "SGD", "threads": 1, "rounds": 2}]  # runs in seconds


def cnn(keras, width=32):
    layers = keras.layers
    return keras.Sequential([
        keras.Input((32, 32, 3)),
        layers.Conv2D(width, 3, padding="same", activation="relu"),
        layers.Conv2D(width, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(2 * width, 3, padding="same", activation="relu"),
        layers.Conv2D(2 * width, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(4 * width, activation="relu"),
        layers.Dense(10)])


def mlp(keras, width=512, depth=8):
    layers = keras.layers
    return keras.Sequential([
        keras.Input((width,)), *(layers.Dense(width, activation="relu") for _ in range(depth)),
        layers.Dense(10)])


MODELS = {  # name: (build, batch size, what it is)
    "CNN": (cnn, 64, "4 convolutions and 2 dense layers on 32 x 32 x 3, batch 64"),
    "MLP": (mlp, 128, "8 dense layers of 512 x 512 and a classifier, batch 128"),
    "tiny": (lambda keras: mlp(keras, width=8, depth=2), 4, "for the test of this program"),
}


def optimizer(keras, name):
    return (keras.optimizers.SGD(0.01, momentum=0.9) if name == "SGD"
            else keras.optimizers.Adam(1e-4))


class Training:
    """A compiled model that measures its steps, one `fit` at a time."""

    def __init__(self, keras, model, optimizer, data, callbacks=(), steps=STEPS, xla=False):
        class Clock(keras.callbacks.Callback):
            """The last callback: it sees the end of a step after the others have run."""

            def on_epoch_begin(self, epoch, logs=None):
                self.ends = []

            def on_train_batch_end(self, batch, logs=None):
                self.ends.append((time.perf_counter(), time.process_time()))

        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                      jit_compile=xla)
        self.model, self.data, self.clock = model, data, Clock()
        self.steps_per_round = steps
        self.callbacks = [*callbacks, self.clock]
        self.steps = 0
        self.updates = []  # what the steps that updated the masks took above the others

    def fit(self):
        """Trains for a round; returns the median (seconds, CPU seconds) of a step."""
        self.model.fit(self.data, steps_per_epoch=self.steps_per_round, shuffle=False, verbose=0,
                       callbacks=self.callbacks)
        times = np.diff(self.clock.ends, axis=0)
        median = np.median(times, axis=0)
        first = self.steps + 2  # the step that times[0] is of
        self.updates += [(t - median).tolist() for i, t in enumerate(times)
                         if (first + i) % FREQUENCY == 0]
        self.steps += self.steps_per_round
        return median.tolist()


def trainings(model, optimizer_name):
    """{name: Training}, from the same initial weights on the same batch."""
    import_tfmot()  # leaves tf.keras and the environment as they are
    import tensorflow_model_optimization as tfmot
    import tf_keras

    build, batch, _ = MODELS[model]
    keras.utils.set_random_seed(SEED)
    dense = build(keras)
    generator = np.random.default_rng(SEED)
    x = generator.normal(size=(batch, *dense.input_shape[1:])).astype("float32")
    data = tf.data.Dataset.from_tensors((x, generator.integers(0, 10, batch))).repeat()

    method = ts.MagnitudePruning(ts.PolynomialDecay(**SCHEDULE))
    sparse, hosted, twin, to_wrap = (
        ts.sparsify(dense, method), build(keras), build(tf_keras), build(tf_keras))
    for copy in (hosted, twin, to_wrap):
        copy.set_weights(dense.get_weights())
    wrapped = tfmot.sparsity.keras.prune_low_magnitude(  # keeps the layers and their weights
        to_wrap, tfmot.sparsity.keras.PolynomialDecay(**SCHEDULE))

    def inner(keras=keras):
        return optimizer(keras, optimizer_name)

    update = ts.callbacks.SparsityUpdate
    return {
        BASELINE: Training(keras, dense, inner(), data),
        LAYERS: Training(keras, sparse, inner(), data, [update()]),
        OPTIMIZER: Training(keras, hosted, ts.SparseOptimizer(inner(), method), data, [update()]),
        TWIN: Training(tf_keras, twin, inner(tf_keras), data),
        TFMOT: Training(tf_keras, wrapped, inner(tf_keras), data,
                        [tfmot.sparsity.keras.UpdatePruningStep()]),
    }


def run_case(case):
    """Measures one case in this process; returns it with its times and ratios."""
    if case["threads"]:
        tf.config.threading.set_intra_op_parallelism_threads(case["threads"])
        tf.config.threading.set_inter_op_parallelism_threads(case["threads"])
    trained = trainings(case["model"], case["optimizer"])
    for training in trained.values():  # traces, and prunes
        training.fit()
    rounds = measure.interleave({name: t.fit for name, t in trained.items()}, case["rounds"])
    rows = {}
    for name, training in trained.items():
        row = {"seconds": [wall for wall, _ in rounds[name]],
               "cpu_seconds": [cpu for _, cpu in rounds[name]]}
        if name not in (BASELINE, TWIN):
            row["update_cpu_seconds"] = [cpu for _, cpu in training.updates]
        rows[name] = row
    for name, row in rows.items():
        for base in (BASELINE, TWIN) if name == TFMOT else (BASELINE,):
            ratios = {key: measure.ratio(row[key], rows[base][key])
                      for key in ("seconds", "cpu_seconds")}
            ratios["fastest_seconds"] = min(row["seconds"]) / min(rows[base]["seconds"])
            if row.get("update_cpu_seconds"):
                ratios["cpu_seconds_with_updates"] = ratios["cpu_seconds"]["median"] + (
                    statistics.median(row["update_cpu_seconds"]) / FREQUENCY
                    / statistics.median(rows[base]["cpu_seconds"]))
            row[f"ratio to {base}"] = ratios
    return {**case, "rows": rows}


def run(small=False):
    """Measures all cases; returns the contents of the result file."""
    cases = []
    for case in SMALL if small else CASES:
        child = subprocess.run([sys.executable, "-m", "benchmarks.step", json.dumps(case)],
                               capture_output=True, text=True, cwd=ROOT)
        if child.returncode:
            raise RuntimeError(f"{case} failed:\n{child.stderr}")
        cases.append(json.loads(child.stdout.splitlines()[-1]))
    return measure.document("step", {
        "seed": SEED, "schedule": SCHEDULE, "steps_per_round": STEPS,
        "optimizers": {"SGD": "SGD(0.01, momentum=0.9)", "Adam": "Adam(1e-4)"},
        "models": {name: MODELS[name][2] for name in MODELS}}, cases)


if __name__ == "__main__":
    print(json.dumps(run_case(json.loads(sys.argv[1]))))
