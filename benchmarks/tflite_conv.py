"""The time of exported convolutional networks in LiteRT, SSE kernels on both sides, one thread.

XNNPACK runs no convolution sparse on x86 with AVX. Here AVX is hidden from it (`without_avx`), from
the dense file too: the ratio is that of the same instructions with and without sparse kernels. It
is no phone's, and on this machine dense files are faster with AVX than here.
"""

import statistics

import tflite_export
from benchmarks import measure, networks, without_avx
from benchmarks.tflite_size import OURS, converted
from tflite_export import benchmark, child, flatbuffer, ports, runner, store, trial

SEED = 0
PICTURE = 224
SPARSITIES = (0.8, 0.9, 0.95)
ROUNDS = 11
# Times as fast as dense at a sparsity of 0.9, float32.
GOALS = {"MobileNet": 4.0, "MobileNetV2": 2.8, "MobileNetV3Large": 2.6, "EfficientNetB0": 2.0}
DENSE = "dense float32"
SMALL = {"names": ("MobileNetV3Small",), "sparsities": (0.9,), "picture": 64, "rounds": 2}


def case(name, sparsity, picture, rounds):
    """Seconds of the dense file and ours, and how many times as fast ours are."""
    model = networks.randomize(networks.build(name, picture), sparsity, seed=SEED)
    dense = converted(model, sparse=False)
    files = {DENSE: dense} | {label: tflite_export.convert(dense, **options).tflite
                              for label, options in OURS.items()}
    batches = [ports.random_batches(ports.inputs(flatbuffer.read(file)), 1)[0]
               for file in files.values()]
    answer = child.call(timed, without_avx.nothing_but_floor(), list(files.values()), batches,
                        rounds, limit=benchmark.LIMIT)
    if answer.failure is not None:
        raise RuntimeError(f"{name} at {sparsity:g}: {answer.failure}")
    seconds, differences = answer.value
    times = dict(zip(files, zip(*seconds)))
    rows = {label: {"seconds": statistics.median(times[label]), "difference": difference,
                    "times dense": measure.ratio(times[DENSE], times[label])}
            for label, difference in zip(files, differences)}
    return {"network": name, "sparsity": sparsity, "rounds": rounds, "rows": rows}


def timed(note, floor, files, batches, rounds):
    """What the child does: (seconds of each file in each round, how far the outputs of each are
    from its dense twin's, relative to the greatest)."""
    without_avx.hide(floor)
    differences = [trial.relative(*(trial.run_file(one, runner.KERNELS[0], [batch])
                                    for one in (store.dense_twin(file), file)))
                   for file, batch in zip(files, batches)]
    return benchmark.measure(note, files, batches, rounds, threads=1), differences


def run(small=False):
    names, levels, picture, rounds = SMALL.values() if small else (
        networks.CNNS, SPARSITIES, PICTURE, ROUNDS)
    cases = []
    for name in names:
        for sparsity in levels:
            cases.append(case(name, sparsity, picture, rounds))
            print(f"{name} at {sparsity:g}", flush=True)
    return measure.document("tflite_conv", {"seed": SEED, "picture": picture, "threads": 1,
                                            "instructions": "SSE, AVX hidden"}, cases)
