"""The recipes that reproduce published tables: smoke runs, result files, tables in the README."""

import argparse
import importlib
import json
import math
import shlex
import subprocess
import sys

import keras
import numpy as np
import pytest

import tf_sparsity as ts
from recipes import (l0_mnist, matched_mnist, mobilenet_cifar, tickets_cifar_narrow_short,
                     tickets_mnist, variational_dropout_mnist)
from recipes.data import arrays
from recipes.networks import lenet, resnet_cifar
from recipes.reporting import readme, results
from recipes.running import configuration, machine, registry, runner

RECIPES = {name: importlib.import_module(f"recipes.{name}") for name in registry.EXPERIMENTS}
KEPT = {"sos_lenet_mnist", "sos_resnet20_cifar", "sos_transformer_multi30k"}


def smoke(recipe, folder, *arguments):
    """The result of a smoke run."""
    assert RECIPES[recipe].main(["--smoke", "--out", str(folder), *arguments]) == 0
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("model", ["lenet300", pytest.param("lenet5", marks=pytest.mark.slow)])
def test_smoke_run_of_variational_dropout(tmp_path, capsys, model):
    result = smoke("variational_dropout_mnist", tmp_path, "--model", model, "--seed", "3")
    assert "digits in place of MNIST" in capsys.readouterr().out
    assert result["data"] == "digits"
    assert (result["model"], result["seed"]) == (model, 3)
    asked = [entry["threshold"] for entry in result["thresholds"]]
    assert tuple(asked) == variational_dropout_mnist.THRESHOLDS[model]
    found = [entry["sparsity"] for entry in result["thresholds"]]
    assert 0 < found[0] and found == sorted(found)  # a lower threshold prunes more
    assert len(list(variational_dropout_mnist.differences(result))) > len(asked)


@pytest.mark.parametrize("model", ["lenet300", pytest.param("lenet5", marks=pytest.mark.slow)])
def test_smoke_run_of_l0(tmp_path, model):
    result = smoke("l0_mnist", tmp_path, "--model", model, "--scale", "0.5", "--l2", "0.001")
    assert (result["settings"]["scale"], result["settings"]["l2"]) == (0.5, 0.001)
    assert (tmp_path / f"l0_mnist_{model}_scale0.5_l2-0.001_2epochs_seed0.json").exists()
    # So short a run closes no gate.
    full = {"lenet300": ("784-300-100", 266_200), "lenet5": ("20-50-800-500", 430_500)}[model]
    assert (result["architecture"], result["weights_left"]) == full
    assert result["compression"] == 1.0
    assert list(l0_mnist.differences(result))


@pytest.mark.filterwarnings("ignore:.*was asked for a sparsity of")  # as short as it is
@pytest.mark.parametrize("reach", ["rank",
                                   pytest.param("controller", marks=pytest.mark.slow)])
def test_smoke_run_of_the_matched_comparison(tmp_path, reach):
    result = smoke("matched_mnist", tmp_path, "--reach", reach)
    cases = {case["method"]: case for case in result["cases"]}
    assert list(cases) == ["dense", *matched_mnist.methods(0.9, reach, 100, 100)]
    if reach == "rank":  # the controller needs a longer run
        for name in set(cases) - {"dense"}:
            assert sum(kernel["zeros"] for kernel in cases[name]["kernels"]) == 239_580, name
    assert "±" not in matched_mnist.table([result])


def test_smoke_run_of_the_tickets(tmp_path):
    result = smoke("tickets_mnist", tmp_path)
    assert (tmp_path / "tickets_mnist.png").stat().st_size > 10_000
    cases = {(case["method"], case["setting"]): case for case in result["cases"]}
    # of 266,200 weights a fifth, 53,240, go in round 1, and of 212,960 left 42,592 in round 2
    zeros = {setting: sum(kernel["zeros"] for kernel in case["kernels"])
             for (_, setting), case in cases.items()}
    assert zeros == {"": 0, "round 1": 53_240, "round 2": 95_832, "0.8": 212_960,
                     "s0 = 0.02": zeros["s0 = 0.02"]}
    assert [case["trainings"] for case in cases.values()] == [1, 2, 3, 3, 1]
    assert "±" not in tickets_mnist.table([result])


@pytest.mark.slow
def test_smoke_run_of_the_tickets_on_cifar(tmp_path):
    """TensorFlow in its own process: the recipe chooses its kernels before it is imported."""
    subprocess.run([sys.executable, "-m", "recipes.tickets_cifar_narrow_short", "--smoke",
                    "--out", str(tmp_path)], check=True, cwd=results.FOLDER.parent.parent)
    [path] = tmp_path.glob("*.json")
    # of 67,992 weights 36 %, 24,477, go in round 1; 80 % are 54,394
    result = json.loads(path.read_text())
    zeros = [sum(kernel["zeros"] for kernel in case["kernels"]) for case in result["cases"]]
    assert [zeros[i] for i in (0, 1, 3)] == [0, 24_477, 54_394]


@pytest.mark.slow
def test_smoke_run_of_the_exported_network(tmp_path):
    result = smoke("mobilenet_cifar", tmp_path)
    dense, pruned = result["cases"]
    assert dense["sparsity"] == 0.0 and pruned["sparsity"] == pytest.approx(0.8, abs=1e-3)
    for case in result["cases"]:
        exports = {entry["export"]: entry for entry in case["exports"]}
        assert list(exports) == list(mobilenet_cifar.EXPORTS)
        assert exports["float32"]["accuracy"] == pytest.approx(case["accuracy"])  # same classes
    assert pruned["exports"][1]["bytes"] < dense["exports"][1]["bytes"]
    assert "±" not in mobilenet_cifar.table([result])


def test_a_trained_model_is_ranked_anew_for_another_sparsity():
    few, many = (matched_mnist.methods(sparsity, "rank", 100, 100)["variational dropout"]
                 for sparsity in (0.5, 0.98))
    model = ts.sparsify(lenet.lenet300(), few)
    ts.update(model)
    copy = matched_mnist.asked_anew(model, many)
    assert [ts.report(m).sparsity for m in (model, copy)] == pytest.approx([0.5, 0.98])
    for layer in ("dense1", "dense2", "classes"):
        theta, same = (np.asarray(m.get_layer(layer).theta("kernel")) for m in (model, copy))
        assert (theta == same).all()
        kernel = np.asarray(copy.get_layer(layer).kernel)
        assert ((kernel == theta) | (kernel == 0)).all()


def test_readme_shows_the_results():
    text = readme.README.read_text()
    assert text == readme.filled(text), "run python -m recipes readme"


@pytest.mark.parametrize("path", sorted(results.FOLDER.glob("*.json")), ids=lambda p: p.stem)
def test_result_files_are_complete_and_consistent(path):
    result = json.loads(path.read_text())
    assert result["recipe"] in RECIPES
    assert result["data"] == ("CIFAR-10" if "cifar" in result["recipe"] else "MNIST")
    assert f"recipes.{result['recipe']}" in result["command"]
    assert not any(option in result["command"] for option in results.LOCAL)
    assert path.stem.startswith(result["recipe"])
    assert path.stem.endswith(f"_seed{result['seed']}")
    assert result["seconds"] > 0
    assert {"tf_sparsity", "keras", "numpy", "python"} <= set(result["versions"])
    for entry in result.get("thresholds") or result.get("cases") or [result]:
        kernels = entry["kernels"]
        if result["recipe"] == "mobilenet_cifar":  # prunes those that will run sparse, no others
            kernels = [kernel for kernel in kernels if kernel["zeros"]] or kernels
        size, zeros = (sum(kernel[key] for kernel in kernels) for key in ("size", "zeros"))
        assert entry["sparsity"] == pytest.approx(zeros / size)
        if "threshold" in entry:
            assert entry["compression"] == pytest.approx(size / (size - zeros))
        assert 0 < entry.get("error", 0.5) < 1


@pytest.mark.parametrize("name", registry.RECIPES)
def test_kept_records_are_of_the_recipe_as_it_is(name):
    """Each names its configuration by hash and by a command that asks for it, counts its zeros, and
    says what is different; what it was ranked from is kept too."""
    module, folder = registry.load(name), results.FOLDER / name
    paths = list(folder.glob("*/record.json"))
    assert bool(paths) == (name in KEPT)
    for path in paths:
        record = json.loads(path.read_text())
        words = shlex.split(record["command"])
        assert f"KERAS_BACKEND={record['where']['backend']}" in words
        _, words = runner.split(words[words.index(name) + 1:])
        found = configuration.parse(module.Configuration, words)
        assert configuration.values(found) == record["configuration"], path
        assert configuration.digest(name, found) == record["digest"] == path.parent.name
        assert record["differences"] == [
            said.sentence for said in module.DIFFERENCES if said.holds(found)], path
        assert record["status"] == "complete"
        report = record["report"]
        size, zeros = (sum(kernel[key] for kernel in report["kernels"]) for key in ("size", "zeros"))
        assert (size, zeros) == (report["size"], report["zeros"])
        assert report["sparsity"] == pytest.approx(zeros / size)
        source = report.get("trained_in")
        assert bool(record["epochs"]) == (source is None)
        assert source is None or (folder / source / "record.json").exists()


def test_two_processes_do_not_share_backups(tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(results, "UNFINISHED", tmp_path)
    args = results.parser("l0_mnist", "", 10).parse_args([])
    result = {"recipe": "l0_mnist", "command": "python -m recipes.l0_mnist", "seed": 0}
    with results.unfinished(result, args) as folder:
        with open(folder / "lock") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not folder.exists()


@pytest.fixture
def environment(monkeypatch):
    for name in machine.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_command_names_no_place_on_the_machine(environment):
    environment.setenv("TF_NUM_INTRAOP_THREADS", "1")
    command = results.command("l0_mnist", ["--out", "/a", "--seed", "2", "--data-dir=/b"])
    assert command.endswith(" TF_NUM_INTRAOP_THREADS=1 python -m recipes.l0_mnist --seed 2")
    assert command.startswith("KERAS_BACKEND=")


def test_missing_data_of_a_program_is_a_sentence():
    done = subprocess.run([sys.executable, "-m", "recipes.l0_mnist", "--data-dir", "/nowhere"],
                          capture_output=True, text=True, cwd=results.FOLDER.parent.parent)
    assert done.returncode == 2 and "error: There is no /nowhere" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["--epochs", "0"], ["--epochs", "-1"], ["--seed", "-1"]])
def test_numbers_of_a_program_have_a_range(words, capsys):
    """0 epochs are not the default number of them."""
    with pytest.raises(SystemExit):
        results.parser("l0_mnist", "", 200).parse_args(words)
    least = 1 if words[0] == "--epochs" else 0
    assert f"argument {words[0]}: an integer from {least} up. Received: {words[1]}" in (
        capsys.readouterr().err)


def test_a_warm_up_has_a_length(capsys):
    with pytest.raises(SystemExit):
        variational_dropout_mnist.main(["--smoke", "--warm-up", "0.5", "0.5"])
    assert "0 <= FROM < TO <= 1. Received: 0.5 0.5" in capsys.readouterr().err


def test_runs_by_rank_alone_have_no_headline():
    """The overview's line is of those with the controller."""
    runs = [run for run in results.read("matched_mnist") if run["settings"]["reach"] == "rank"]
    assert runs and list(matched_mnist.headlines(runs)) == []


def test_command_can_be_given_to_a_shell(environment, tmp_path):
    """A value with a space: quotes around all of NAME=value would make it the program to run."""
    environment.setenv("XLA_FLAGS", "--a --b")
    (tmp_path / "python").write_text('#!/bin/sh\necho "$XLA_FLAGS" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    said = subprocess.run(["/bin/sh", "-c", machine.command("recipes", "run", "a b")],
                          capture_output=True, text=True, env={"PATH": str(tmp_path)}).stdout
    assert said == "--a --b -m recipes run a b\n"


def test_spread():
    assert results.spread([1.0]) == "1.00"
    assert results.spread([1.0, 2.0, 3.0], ".1f") == "2.0 ± 1.0"


def test_networks_have_the_published_number_of_weights():
    for name, size in (("lenet300", 266_200), ("lenet5", 430_500)):
        kernels = [w for w in lenet.MODELS[name]().weights if w.name == "kernel"]
        assert sum(math.prod(kernel.shape) for kernel in kernels) == size


def test_weights_left_between_units():
    def first(n, of):
        return np.arange(of) < n

    left = {"dense1": first(266, 784), "dense2": first(88, 300), "classes": first(33, 100)}
    assert l0_mnist.weights_left("lenet300", left) == 266 * 88 + 88 * 33 + 33 * 10
    # Inputs of the dense layer count where their channel is left: 3 of the first 9 have channel 0-2
    left = {"conv1": first(2, 20), "conv2": first(3, 50), "dense1": first(59, 800),
            "classes": first(7, 500)}
    assert l0_mnist.weights_left("lenet5", left) == 25 * 2 + 25 * 2 * 3 + (3 + 3) * 7 + 7 * 10


def test_published_networks_have_the_published_numbers_of_weights():
    assert l0_mnist.weights_between("lenet300", [784, 300, 100]) == l0_mnist.SIZES["lenet300"]
    assert l0_mnist.weights_between("lenet5", [20, 50, 800, 500]) == l0_mnist.SIZES["lenet5"]
    # 266 x 88 + 88 x 33 + 33 x 10 = 26,642
    assert l0_mnist.weights_between("lenet300", [266, 88, 33]) == 26_642


def test_weight_decay_is_half_the_squares_of_the_kernels_in_the_loss():
    model = resnet_cifar.resnet(8, 2, decay=0.5)
    kernels = [w.numpy() for w in model.trainable_weights if w.name == "kernel"]
    assert float(sum(model.losses)) == pytest.approx(
        0.25 * sum((kernel ** 2).sum() for kernel in kernels), rel=1e-5)  # float32 sums
    assert len(model.losses) == len(kernels) and resnet_cifar.resnet(8, 2).losses == []


class Killed(Exception):
    pass


@pytest.mark.parametrize("recipe", ["l0_mnist", *(pytest.param(name, marks=pytest.mark.slow)
                                                  for name in ("variational_dropout_mnist",
                                                               "tickets_mnist"))])
def test_an_interrupted_program_goes_on_bit_for_bit(recipe, tmp_path, monkeypatch, capsys):
    """Left where the test images are looked at for the second time, in the second epoch or round:
    what is complete is not trained again."""
    unfinished = results.unfinished

    def of_a_full_run(result, args):  # a smoke run keeps nothing
        return unfinished(result, argparse.Namespace(**{**vars(args), "smoke": False}))

    def outcome(folder):
        result = smoke(recipe, folder)
        return {key: value for key, value in result.items() if key not in ("command", "seconds")}

    straight = outcome(tmp_path / "straight")
    monkeypatch.setattr(results, "UNFINISHED", tmp_path / "unfinished")
    monkeypatch.setattr(results, "unfinished", of_a_full_run)
    evaluate, calls = keras.Model.evaluate, []

    def killed(model, *args, **kwargs):
        calls.append(model)
        if len(calls) == 2:
            raise Killed
        return evaluate(model, *args, **kwargs)

    monkeypatch.setattr(keras.Model, "evaluate", killed)
    with pytest.raises(Killed):
        outcome(tmp_path / "killed")
    left = len(calls)
    assert "Going on with what is in" not in capsys.readouterr().out
    again = outcome(tmp_path / "again")
    monkeypatch.undo()
    assert "Going on with what is in" in capsys.readouterr().out
    assert not list((tmp_path / "unfinished" / recipe).iterdir())
    assert left == 2 and calls[2:]  # went on, and was not complete
    for case in (*straight.get("cases", ()), *again.get("cases", ())):
        case["seconds"] = 0
    assert again == straight


def test_learning_rates_are_those_of_the_authors():
    flat, falling = (variational_dropout_mnist.rate(name, 200) for name in ("lenet300", "lenet5"))
    assert [flat(epoch) for epoch in (0, 100, 150)] == [1e-3, 1e-3, 5e-4]
    assert [falling(epoch) for epoch in (0, 50, 100)] == [1e-3, 7.5e-4, 5e-4]


def test_digits_have_the_shape_of_mnist():
    (x, y), (x_test, y_test) = arrays.mnist_shaped_digits()
    assert x.shape == (1437, 28, 28, 1) and x_test.shape == (360, 28, 28, 1)
    assert x.dtype == "float32" and (x.min(), x.max()) == (0, 1)
    assert set(y) == set(y_test) == set(range(10))


def test_what_is_not_installed_has_no_version(monkeypatch):
    """The jax extra may be missing: a run must not fail for that."""
    monkeypatch.setattr(machine, "PACKAGES", ("numpy", "no-such-package"))
    versions = results.common("tickets_mnist", [], "MNIST", 0, {})["versions"]
    assert versions["no-such-package"] is None and versions["numpy"] == np.__version__
