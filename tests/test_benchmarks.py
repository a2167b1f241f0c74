"""The benchmarks run on tiny models; nothing here asserts a speed."""

import collections
import json
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from benchmarks import (learned, mask, measure, networks, readme, step, tflite_conv, tflite_size,
                        tflite_speed)
from tflite_export import machine

ROOT = Path(readme.__file__).parent.parent


def test_ratios_are_those_within_a_round():
    ratio = measure.ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0])
    assert ratio == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_rounds_are_interleaved_and_the_order_turns():
    calls = []
    measures = {name: lambda name=name: calls.append(name) or len(calls) for name in "abc"}
    values = measure.interleave(measures, 2)
    assert "".join(calls) == "abcbca"
    assert values == {"a": [1, 6], "b": [2, 4], "c": [3, 5]}


@pytest.mark.slow
def test_the_program_runs_on_tiny_models(tmp_path):
    """As a command: its cases have processes of their own, and TFMOT stays out of this one."""
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks", "step", "mask", "learned", "input_wait",
         "--small", "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    (case,) = json.loads((tmp_path / "step.json").read_text())["cases"]
    assert list(case["rows"]) == [step.BASELINE, step.LAYERS, step.OPTIMIZER, step.TWIN, step.TFMOT]
    for row in case["rows"].values():
        assert len(row["seconds"]) == len(row["cpu_seconds"]) == case["rounds"]
    cases = json.loads((tmp_path / "mask.json").read_text())["cases"]
    assert [c["masks"] for c in cases] == [c["masks"] for c in mask.CASES]
    (case,) = json.loads((tmp_path / "learned.json").read_text())["cases"]
    assert list(case["rows"]) == list(learned.METHODS)
    for row in case["rows"].values():
        assert len(row["cpu_seconds"]) == case["rounds"] and row["peak_megabytes"] > 0
    (case,) = json.loads((tmp_path / "input_wait.json").read_text())["cases"]
    assert case["examples"] == 100 and case["ratio"]["min"] > 0
    assert "| layer host | dense |" in run.stdout and "| all ones | uniform |" in run.stdout


def test_what_csr_takes():
    """4 x 100 of int8, 197 kept: a byte and a byte each, and 5 places where rows begin; of
    float32, 200 x 300 and 6,000 kept: 4 bytes and 1 each by columns, and 301 places of 2."""
    Row = collections.namedtuple("Row", "shape dtype sparsity")
    assert tflite_size.csr(Row((4, 100), "int8", 203 / 400)) == 2 * 197 + 5
    assert tflite_size.csr(Row((200, 300), "float32", 0.9)) == 6000 * 5 + 301 * 2


@pytest.mark.slow
def test_exported_files_are_measured(tmp_path):
    run = subprocess.run([sys.executable, "-m", "benchmarks", "tflite_size", "tflite_speed",
                          "--small", "--out", str(tmp_path)], cwd=ROOT, capture_output=True,
                         text=True)
    assert run.returncode == 0, run.stderr
    (case,) = json.loads((tmp_path / "tflite_size.json").read_text())["cases"]
    for label in tflite_size.OURS:
        ours = case["rows"][label]
        bound = ours[tflite_size.LOWER_BOUND]
        assert bound <= ours["encoded"] <= tflite_size.GOAL * bound
        assert ours["bytes"] < case["rows"]["dense float32"]["bytes"]
    (case,) = json.loads((tmp_path / "tflite_speed.json").read_text())["cases"]
    assert list(case["rows"]) == list(tflite_speed.SPARSE)
    for row in case["rows"].values():
        assert row["layers that run sparse"] == 3 and row["best dense"] in tflite_speed.DENSE


@pytest.mark.slow
@pytest.mark.skipif(machine.runs_sparse_convolutions() is not False,
                    reason="there is no AVX to hide here")
def test_with_avx_hidden_convolutions_run_sparse():
    """Not a speed that is asserted: 9 of 10 multiply-adds less show through any disturbance."""
    case = tflite_conv.case("MobileNet", 0.9, 224, rounds=3)
    assert case["rows"]["float32"]["times dense"]["median"] > 1.5
    assert max(row["difference"] for row in case["rows"].values()) < 1e-5


@pytest.mark.parametrize("name", networks.CNNS)
def test_heads_of_networks_stay_dense(name):
    """1x1 kernels behind the last global average, and the classifier, are no pruned layers."""
    model = networks.build(name, 64)
    chosen = networks.pruned_layers(model)
    assert {type(layer).__name__ for layer in chosen} == {"Conv2D"}
    last = model.layers.index(networks.last_average(model))
    assert max(model.layers.index(layer) for layer in chosen) < last


@pytest.mark.parametrize("block", [1, 4, 16])
def test_blocks_of_zeros_lie_along_the_inputs(block):
    """Query and output projections of attention have their inputs on different axes."""
    model = networks.randomize(networks.build(networks.ENCODER), 0.9, block)
    attention = next(l for l in model.layers if type(l).__name__ == "MultiHeadAttention")
    query, out = (keras.ops.convert_to_numpy(kernel) for kernel in (
        attention.query_dense.kernel, attention.output_dense.kernel))
    assert query.shape == (256, 4, 64) and out.shape == (4, 64, 256)
    for rows in (query.reshape(256, 256).T, out.reshape(256, 256).T):  # a row for each output
        kept = (rows.reshape(-1, block) != 0).sum(1)
        assert set(kept) == {0, block}  # a block is empty or full
        assert (kept == 0).sum() == round(0.9 * len(kept))


def test_a_small_run_does_not_replace_the_results():
    run = subprocess.run([sys.executable, "-m", "benchmarks", "--small"], cwd=ROOT,
                         capture_output=True, text=True)
    assert run.returncode == 2 and "--out" in run.stderr


@pytest.mark.parametrize("name", ["step", "mask"])
def test_results_say_where_they_come_from(name):
    result = json.loads((measure.RESULTS / f"{name}.json").read_text())
    assert result["command"] == f"python -m benchmarks {name}"
    assert result["date"] and result["machine"]["cpu"] and result["machine"]["cores"]
    assert all(result["versions"][p] for p in (
        "python", "tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "numpy"))
    for case in result["cases"]:
        for row in case["rows"].values():
            assert len(row["seconds"]) == len(row["cpu_seconds"]) == case["rounds"]


def test_the_tables_in_the_documents_are_those_of_the_results():
    pages = [page.read_text() for page in readme.PAGES]
    for text in pages:
        assert readme.filled(text) == text
    for result in measure.RESULTS.glob("*.json"):
        if result.stem not in ("arm_matrix", "arm_exports"):  # they have no tables
            assert sum(f"<!-- {result.stem} -->" in text for text in pages) == 1
