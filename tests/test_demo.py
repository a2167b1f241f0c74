"""The main job, as `make demo` runs it, and the promises that it checks."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import tflite_export

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo run once, as a reader runs it; (folder, what it printed, report.json)."""
    out = tmp_path_factory.mktemp("demo")
    stale = out / "tensorboard" / "sparsity" / "events.out.tfevents.1.old"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-m", "recipes.digits_demo", "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == "", "the commands print no noise"
    return out, done.stdout, json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def recipe():
    from recipes import digits_demo

    return digits_demo


def test_it_keeps_its_promises(demo):
    _, _, report = demo
    accuracy = report["accuracy"]
    assert accuracy["dense"] >= 0.95
    assert accuracy["sparse"] >= accuracy["dense"] - 0.01
    assert accuracy["exported"] == accuracy["sparse"]
    assert report["difference"] <= 1e-5 and report["other_classes"] == 0
    assert report["failures"] == []


def test_it_writes_what_it_says(demo):
    out, printed, report = demo
    table = (out / "report.txt").read_text()
    assert table in printed
    assert f"{accuracy_line(report)}\n" in table
    files = {str(f.relative_to(out)) for f in out.rglob("*") if f.is_file()}
    events = {f for f in files if f.startswith("tensorboard/")}
    assert files - events == {
        *("report.txt", "report.json", "sparsity.png", "comparison.png"),
        *("dense.keras", "sparse.keras", "sparse.tflite", "export.html"),
    }
    assert len(events) == 4 and not any(event.endswith(".old") for event in events)
    for plot in ("sparsity.png", "comparison.png"):
        assert (out / plot).read_bytes().startswith(b"\x89PNG")
    assert report["versions"]["keras"] == keras.__version__
    assert {"command", "seed", "seconds", "images"} <= set(report)


def accuracy_line(report):
    columns = [f"{report['accuracy'][name]:12.4f}" for name in ("dense", "sparse", "exported")]
    return f"{'test accuracy':36}" + "".join(columns)


def test_the_zeros_are_in_the_saved_model(demo):
    """Counted again from the files: 90 % of each kernel, rounded; the file holds the same ones."""
    out, _, report = demo
    model = keras.saving.load_model(out / "sparse.keras")
    kernels = {layer.name + "/kernel": layer.kernel for layer in model.layers if layer.weights}
    assert [k["name"] for k in report["kernels"]] == list(kernels)
    zeros = 0
    for row in report["kernels"]:
        array = keras.ops.convert_to_numpy(kernels[row["name"]])
        assert list(array.shape) == row["shape"] and array.size == row["size"]
        assert np.sum(array == 0) == row["zeros"] == round(0.9 * array.size)
        assert row["sparsity"]["sparse"] == row["zeros"] / row["size"]
        zeros += row["zeros"]
    sparsity = report["sparsity"]
    assert sparsity["sparse"] == zeros / sum(row["size"] for row in report["kernels"])
    assert sparsity["exported"] == pytest.approx(sparsity["sparse"], rel=1e-12)
    assert sparsity["dense"] == 0


def test_the_sizes_are_those_of_the_file(demo):
    out, _, report = demo
    size, zipped = report["bytes"], report["bytes_zipped"]
    assert size["exported"] == (out / "sparse.tflite").stat().st_size
    assert size["exported"] < 0.2 * size["dense"] and size["dense"] == size["sparse"]
    assert zipped["exported"] < zipped["sparse"] < zipped["dense"] < size["dense"]


def test_the_files_give_the_accuracies(demo, recipe):
    out, _, report = demo
    _, _, (images, classes) = recipe.load_digits()
    assert len(images) == report["images"]["test"] == 360
    tflite = (out / "sparse.tflite").read_bytes()
    outputs = {
        "exported": tflite_export.interpret(tflite, images),
        "sparse": keras.saving.load_model(out / "sparse.keras").predict(images, verbose=0),
        "dense": keras.saving.load_model(out / "dense.keras").predict(images, verbose=0),
    }
    for name, probabilities in outputs.items():
        assert recipe.accuracy(probabilities, classes) == report["accuracy"][name], name


def test_the_comparison_is_at_a_matched_sparsity(demo):
    """Pruning rounds the zeros of each kernel: 135,965 of 151,072; rank those of all kernels."""
    _, printed, report = demo
    compared = report["compared"]
    assert list(compared) == [
        "magnitude pruning", "variational dropout", "L0", "continuous sparsification"]
    sizes = [row["size"] for row in report["kernels"]]
    for name, row in compared.items():
        zeros = sum(s * n for s, n in zip(row["sparsity_of_kernels"], sizes))
        assert round(zeros) == round(0.9 * sum(sizes)) == 135965, name
        assert (row["natural"] is None) == (name == "magnitude pruning")
        assert f"{name:28}{row['accuracy']:14.4f}    0.9000" in printed
        assert row["accuracy"] > 0.9, name  # chance is 0.1; the table shows the rest
    assert compared["magnitude pruning"]["accuracy"] == report["accuracy"]["sparse"]


def test_images_are_split_once(recipe):
    parts = recipe.load_digits()
    assert [len(x) for x, _ in parts] == [1167, 270, 360]
    rows = [row.tobytes() for x, _ in parts for row in x]
    assert len(rows) == 1797 == len(set(rows))


def test_shifted_images_are_moved_by_one_pixel(recipe):
    image = np.zeros((1, 8, 8, 1), "float32")
    image[0, 3, 5] = 1
    moved, classes = recipe.shifted(image, np.array([7]))
    places = [tuple(int(i) for i in np.argwhere(one[..., 0])[0]) for one in moved]
    assert sorted(places) == [(2, 5), (3, 4), (3, 5), (3, 6), (4, 5)]
    assert classes.tolist() == [7] * 5


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("accuracy", "dense"), 0.94, "below 0.95"),
        (("accuracy", "sparse"), 0.9, "more than 0.01 below"),
        (("difference",), 2e-5, "differ by 2.0e-05"),
        (("difference",), float("nan"), "differ by nan"),
        (("other_classes",), 3, "3 test images"),
        (("compared", "L0", "sparsity"), 0.89, "by L0 is 0.8900, not 0.9"),
    ],
)
def test_a_broken_promise_is_a_failure(demo, recipe, path, value, sentence):
    report = copy.deepcopy(demo[2])
    assert list(recipe.failures(report)) == []
    *parents, last = path
    inside = report
    for key in parents:
        inside = inside[key]
    inside[last] = value
    (failure,) = recipe.failures(report)
    assert sentence in failure
