"""Time and memory of a training step with learned sparsity, over those of the dense step.

As in step.py: all models of a case train in one process on one batch, rounds are interleaved, and
a ratio divides two numbers of one round. The floor is the dense model whose every kernel is the sum
of two trainable arrays: the least that training a second array per kernel can cost. That of
variational dropout maps its inputs by the one array and their squares by the other: the least that
the local reparameterisation can cost, for it has a KL and noise besides. Peak memory is that of a
process of its own for each model, which trains a few steps.
"""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import tf_sparsity as ts
from benchmarks import measure, step
from recipes.networks.resnet_cifar import resnet

ROOT = Path(__file__).parent.parent
SEED = 0
FREQUENCY = 100  # steps between two updates of an annealed number
BASELINE, FLOOR, MAPS = "dense", "two arrays per kernel", "two linear maps"
CS, L0, VD = "continuous sparsification", "L0", "variational dropout"
GOALS = {("ResNet-20", CS): (BASELINE, 1.15), ("ResNet-20", L0): (BASELINE, 1.3),
         ("ResNet-20", VD): (BASELINE, 2.5), ("MLP", CS): (FLOOR, 1.2), ("MLP", L0): (FLOOR, 1.2),
         ("MLP", VD): (FLOOR, 1.2)}
CASES = [
    {"model": "ResNet-20", "optimizer": "SGD", "rounds": 7, "steps": 6},
    {"model": "MLP", "optimizer": "SGD", "rounds": 15, "steps": 20},
    {"model": "MLP", "optimizer": "SGD", "rounds": 15, "steps": 20, "xla": True},
    {"model": "MLP", "optimizer": "Adam", "rounds": 15, "steps": 20},
    {"model": "Transformer block", "optimizer": "Adam", "rounds": 11, "steps": 10},
]
SMALL = [{"model": "tiny", "optimizer": "SGD", "rounds": 2, "steps": 5}]


def transformer_block(width=256, length=64, heads=4):
    layers = keras.layers
    inputs = keras.Input((length, width))
    x = layers.LayerNormalization()(inputs)
    x = layers.Add()([inputs, layers.MultiHeadAttention(heads, width // heads)(x, x)])
    y = layers.Dense(4 * width, activation="relu")(layers.LayerNormalization()(x))
    x = layers.Add()([x, layers.Dense(width)(y)])
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))


MODELS = {  # name: (build, batch size, what it is)
    "ResNet-20": (resnet, 128, "ResNet-20 on 32 x 32 x 3, batch 128"),
    "MLP": (lambda: step.mlp(keras), 128, step.MODELS["MLP"][2]),
    "Transformer block": (transformer_block, 16,
                          "pre-norm block, width 256, 4 heads, 64 positions, batch 16"),
    "tiny": (lambda: step.mlp(keras, width=8, depth=2), 4, "for the test of this program"),
}


class Sum(ts.Method):
    """weight = theta + other: the floor."""

    trainable_state = True

    def state(self, kernel):
        return {"other": ts.method.Spec(kernel.shape, "zeros", trainable=True)}

    def weight(self, theta, state, *, training, seed=None):
        return theta + state["other"]

    def get_config(self):
        return {}


class Maps(Sum):
    """x theta + x^2 other: the floor of a local reparameterisation."""

    def forward(self, linear, x, theta, state, *, training, seed=None):
        return linear(x, theta) + linear.of_squares(x, state["other"])


METHODS = {
    BASELINE: None,
    FLOOR: Sum(),
    MAPS: Maps(),
    CS: ts.ContinuousSparsification(1_000_000, s0=0.1, frequency=FREQUENCY),
    L0: ts.L0Regularization(50_000, ramp=ts.Ramp(0, 1_000_000, frequency=FREQUENCY)),
    VD: ts.VariationalDropout(50_000, ramp=ts.Ramp(0, 1_000_000, frequency=FREQUENCY)),
}


def training(case, name):
    """A compiled model of a case on its one batch, ready for rounds of `fit`."""
    build, batch, _ = MODELS[case["model"]]
    keras.utils.set_random_seed(SEED)
    model = build()
    generator = np.random.default_rng(SEED)
    x = generator.normal(size=(batch, *model.input_shape[1:])).astype("float32")
    data = tf.data.Dataset.from_tensors((x, generator.integers(0, 10, batch))).repeat()
    method, callbacks = METHODS[name], []
    if method is not None:
        model, callbacks = ts.sparsify(model, method), [ts.callbacks.SparsityUpdate()]
    return step.Training(keras, model, step.optimizer(keras, case["optimizer"]), data, callbacks,
                         steps=case["steps"], xla=case.get("xla", False))


def one_thread():
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def run_case(case):
    """Measures one case in this process; returns it with its times and ratios."""
    one_thread()
    trained = {name: training(case, name) for name in METHODS}
    for t in trained.values():  # traces
        t.fit()
    rounds = measure.interleave({name: t.fit for name, t in trained.items()}, case["rounds"])
    rows = {name: {"seconds": [wall for wall, _ in rounds[name]],
                   "cpu_seconds": [cpu for _, cpu in rounds[name]],
                   "peak_megabytes": _child(case, name)} for name in METHODS}
    for name, row in rows.items():
        for base in (BASELINE, FLOOR):
            row[f"ratio to {base}"] = {
                **{key: measure.ratio(row[key], rows[base][key])
                   for key in ("seconds", "cpu_seconds")},
                "peak_megabytes": row["peak_megabytes"] / rows[base]["peak_megabytes"]}
    return {**case, "rows": rows}


def peak(case, name):
    """Peak resident memory of this process above that before the model, in megabytes (Linux)."""
    one_thread()
    tf.constant(0.0)  # what TensorFlow itself takes
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    training(case, name).fit()
    return (_status("VmHWM") - before) / 1024


def _status(field):
    """Kilobytes of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def _child(*arguments):
    child = subprocess.run([sys.executable, "-m", "benchmarks.learned", json.dumps(arguments)],
                           capture_output=True, text=True, cwd=ROOT)
    if child.returncode:
        raise RuntimeError(f"{arguments} failed:\n{child.stderr}")
    return json.loads(child.stdout.splitlines()[-1])


def run(small=False):
    """Measures all cases; returns the contents of the result file."""
    return measure.document("learned", {
        "seed": SEED, "optimizers": {"SGD": "SGD(0.01, momentum=0.9)", "Adam": "Adam(1e-4)"},
        "models": {name: MODELS[name][2] for name in MODELS},
        "methods": {name: repr(method) for name, method in METHODS.items()},
    }, [_child(case) for case in (SMALL if small else CASES)])


if __name__ == "__main__":
    ARGUMENTS = json.loads(sys.argv[1])
    print(json.dumps(run_case(*ARGUMENTS) if len(ARGUMENTS) == 1 else peak(*ARGUMENTS)))
