"""Time of one update of all masks of a model with 25 million weights: ours and TFMOT's.

Ours is `MagnitudePruning.update` on the variables of a sparsified model, from reading the weights
to assigning the masks. TFMOT's is its `conditional_mask_update` in a `tf.function`, which is what
its wrapper runs in the training step, on variables with the same values.
"""

import time

import keras
import numpy as np
import tensorflow as tf

import tf_sparsity as ts
from benchmarks import measure
from tf_sparsity.tfmot import import_tfmot

SEED = 0
SPARSITY = 0.8
WIDTHS = (4000, 2500, 800, 5000, 1000, 1000, 3000)  # kernels of 10, 2, 4, 5, 1 and 3 million
SMALL_WIDTHS = (30, 20, 10)
CASES = [  # the sparsity of the masks before the update, and of the weights
    {"masks": "all ones", "before": 0.0, "rounds": 9},
    {"masks": "70 % zeros", "before": 0.7, "rounds": 9},
]
TFMOT = "TFMOT"
GOALS = {"uniform": 15, "global": 10}  # times as fast as TFMOT


def updates(widths, before):
    """{name: function that updates all masks once and returns (seconds, CPU seconds)}."""
    pruning_impl, pruning_schedule = import_tfmot()
    keras.utils.set_random_seed(SEED)
    dense = keras.Sequential([keras.Input((widths[0],)),
                              *(keras.layers.Dense(w, use_bias=False) for w in widths[1:])])
    schedule = ts.ConstantSparsity(SPARSITY, 0)
    model = ts.sparsify(dense, ts.MagnitudePruning(schedule))
    slots = [slot for layer in model.layers for _, slot in layer.slots()]
    ts.MagnitudePruning(ts.ConstantSparsity(before, 0)).update(slots, 0)
    for slot in slots:
        slot.theta.assign(slot.theta * slot.state["mask"])
    masks = [keras.ops.copy(slot.state["mask"].value) for slot in slots]

    def timed(update):
        start = time.perf_counter(), time.process_time()
        update()
        return time.perf_counter() - start[0], time.process_time() - start[1]

    def ours(**arguments):
        method = ts.MagnitudePruning(schedule, **arguments)

        def measured():
            for slot, mask in zip(slots, masks):
                slot.state["mask"].assign(mask)
            return timed(lambda: method.update(slots, 0))

        return measured

    arrays = [(tf.Variable(slot.theta.value), tf.Variable(mask), tf.Variable(0.0))
              for slot, mask in zip(slots, masks)]
    engine = pruning_impl.Pruning(
        lambda: tf.constant(1, tf.int64), arrays,
        pruning_schedule.ConstantSparsity(SPARSITY, 0, frequency=1), (1, 1), "AVG")
    theirs = tf.function(engine.conditional_mask_update)
    return {TFMOT: lambda: timed(theirs), "uniform": ours(),
            "global": ours(distribution="global")}


def run(small=False):
    """Measures both cases; returns the contents of the result file."""
    widths, cases = SMALL_WIDTHS if small else WIDTHS, []
    for case in CASES:
        case = {**case, "rounds": 2} if small else case
        measures = updates(widths, case["before"])
        for measured in measures.values():  # traces
            measured()
        rounds = measure.interleave(measures, case["rounds"])
        rows = {name: {"seconds": [wall for wall, _ in times],
                       "cpu_seconds": [cpu for _, cpu in times]}
                for name, times in rounds.items()}
        for name, row in rows.items():
            if name != TFMOT:  # how many times as fast
                row["speedup"] = {key: measure.ratio(rows[TFMOT][key], row[key])
                                  for key in ("seconds", "cpu_seconds")}
        cases.append({**case, "rows": rows})
    kernels = [[a, b] for a, b in zip(widths, widths[1:])]
    return measure.document("mask", {
        "seed": SEED, "sparsity": SPARSITY, "kernels": kernels,
        "weights": sum(a * b for a, b in kernels)}, cases)
