"""The time of one run of two files in LiteRT on this machine, taken in turns.

Machines change speed while they are measured, so the files alternate, and their ratio within each
round is what is reported. It says nothing about a machine with other instructions.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from tflite_export import child, flatbuffer, machine, ports, runner

LIMIT = 1800  # seconds
LEAST = 0.1  # seconds of each measurement: runs are repeated, as caches are warm in a run of many
FEWEST = 6  # rounds: those of equal files are all on one side in one of 2**(rounds - 1) cases


class Benchmark(NamedTuple):
    """Times are in seconds for one run of a batch; ratios are (time against) / (time of file)."""

    seconds: float  # median
    seconds_against: float
    ratio: float  # median over the rounds: above 1, the file is faster
    ratios: tuple  # one per round
    threads: int
    against: str  # what the file was compared with
    convolution: bool  # whether the file has one

    def __str__(self):
        low, high = min(self.ratios), max(self.ratios)
        means = (f": inconclusive below {FEWEST} rounds" if len(self.ratios) < FEWEST else
                 ": no significant difference" if low <= 1 <= high else "")
        scale, unit = ((1e6, "us") if min(self.seconds, self.seconds_against) < 1e-4 else
                       (1e3, "ms"))
        lines = [
            f"file     {scale * self.seconds:10.3f} {unit} a run",
            f"against  {scale * self.seconds_against:10.3f} {unit} a run: {self.against}",
            f"ratio    {self.ratio:10.2f}    median of {len(self.ratios)} rounds in turns, "
            f"{low:.2f} to {high:.2f}{means}; above 1 the file is faster",
            f"LiteRT with XNNPACK, {self.threads} thread{'s' if self.threads > 1 else ''}",
        ]
        if self.convolution and machine.runs_sparse_convolutions() is False:
            lines.append("this machine is x86 with AVX, where XNNPACK runs no convolution sparse")
        return "\n".join(lines)


def benchmark(tflite, against, *, rounds=11, threads=1, name="the other file"):
    """Runs two files in turns in a child process.

    Args:
        tflite: bytes of the file.
        against: bytes of the file to compare with; it may have other inputs.
        rounds: how often each is measured; below FEWEST, nothing is concluded.
        threads: that the kernels may use.
        name: what `against` is called in the text.

    Returns:
        Benchmark.

    Raises:
        ValueError: a file does not run; in the words of LiteRT, or that it crashed.

    Example:
        >>> import keras, tflite_export
        >>> from tflite_export.benchmark import benchmark
        >>> tflite = tflite_export.convert(
        ...     keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), sparse=False).tflite
        >>> len(benchmark(tflite, tflite, rounds=3).ratios)
        3
    """
    files = tflite, against
    batches = [ports.random_batches(ports.inputs(flatbuffer.read(file)), 1)[0] for file in files]
    answer = child.call(measure, files, batches, rounds, threads, limit=LIMIT)
    if answer.failure is not None:
        raise ValueError(f"The files do not run in LiteRT: {answer.failure}")
    times = np.array(answer.value)  # rounds x (file, against)
    ratios = times[:, 1] / times[:, 0]
    return Benchmark(*map(float, np.median(times, axis=0)), float(np.median(ratios)),
                     tuple(map(float, ratios)), threads, name,
                     "CONV_2D" in flatbuffer.operators(tflite))


def measure(note, files, batches, rounds, threads):
    """What the child does: seconds for a run of each file, in each round.

    Each file has a thread of its own, as in an app that has one of them: XNNPACK's kernels for
    AVX-512 leave the upper halves of vector registers in use, after which kernels for SSE take
    three times as long on that thread.
    """
    timers = [_Timer(file, batch, threads) for file, batch in zip(files, batches)]
    rows = []
    for i in range(rounds):
        row = [0.0] * len(timers)
        for j in range(len(timers)) if i % 2 else reversed(range(len(timers))):
            row[j] = timers[j].seconds()
        rows.append(row)
    return rows


class _Timer:
    """A file loaded and run on one thread."""

    def __init__(self, file, batch, threads):
        self.pool = ThreadPoolExecutor(1)
        self.loaded = self.pool.submit(runner.Runner, file, threads=threads).result()
        self.pool.submit(self.loaded.set, batch).result()
        self.repeats = 1
        self.seconds()  # the first run prepares
        self.repeats = max(1, int(LEAST / max(self.seconds(), 1e-7)))

    def seconds(self):
        """Of one run, over so many that it can be measured."""
        return self.pool.submit(self._run).result()

    def _run(self):
        began = time.perf_counter()
        for _ in range(self.repeats):
            self.loaded.run()
        return (time.perf_counter() - began) / self.repeats
