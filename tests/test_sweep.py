"""`python -m recipes sweep`: what is swept, by whom, and what a killed worker leaves."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import keras
import pytest

from recipes import __main__ as command
from recipes import sos_lenet_mnist
from recipes.running import runner, sweep

pytest.importorskip("keras_tuner")
# keras-tuner 1.4 calls threading.currentThread().getName()
pytestmark = pytest.mark.filterwarnings("ignore:(currentThread|getName):DeprecationWarning")

ROOT = pathlib.Path(__file__).parent.parent
NAME = "sos_lenet_mnist"
TINY = ("data=digits", "batch=360", "tensorboard=no")


def grid(*words):
    return sweep.Sweep(NAME, words).grid


# ---- what is swept


def test_the_grid_of_the_recipe():
    found = grid()
    sparsities, levels = sos_lenet_mnist.SPARSITIES, sos_lenet_mnist.MASK_SPARSITIES
    # dense; random; magnitude under 4 distributions; 3 learned; 2 scratch; tickets of 2 points
    assert len(found) == len(set(found)) == 1 + 7 + 28 + 21 + 6 + 6
    assert (len(sparsities), len(levels)) == (7, 3)
    assert found[0] == "technique=dense" and "technique=lottery rewind_step=600" in found
    assert "" in found  # magnitude at 0.9, uniform: every default


def test_words_thin_and_widen_the_grid():
    assert grid("technique=dense", "seed=0,1,2") == [
        "technique=dense", "technique=dense seed=1", "technique=dense seed=2"]
    assert grid("technique=random,l0", "sparsity=0.7") == [
        "technique=random sparsity=0.7", "technique=l0 sparsity=0.7"]
    assert len(grid("seed=0,1,2")) == 3 * len(grid())
    assert grid("seed=1,0")[len(grid()):] == grid()  # every cell before its next seed
    assert grid("trials=2") == grid()[:2]
    assert grid("technique=l0", "scale=0.1,1", "sparsity=0.9") == [
        "technique=l0 scale=0.1", "technique=l0"]


@pytest.mark.parametrize("words, said", [
    (["technique=dense", "sparsity=0.5"], "No technique of this sweep has sparsity=0.5; the grid "),
    (["technique=dens"], "has no technique=dens. Did you mean dense?"),
    (["sparsty=0.5"], "no setting 'sparsty'. Did you mean sparsity?"),
    (["tuner=grd"], "tuner=grd: there is no such tuner. Did you mean grid?"),
    (["workers=-1"], "In range is, for instance, workers=0."),
    (["technique=random", "sparsity=2"], "sparsity=2: sparsity is a number from 0 below 1"),
    (["tuner=random", "rate=0.1..1"], "give holdout=5000"),
    (["tuner=random", "rate=0.1..1", "holdout=00"], "give holdout=5000"),
    (["tuner=random", "rate=0.1..1", "holdout=0,5"], "held out. Received: holdout=0,5"),
    (["holdout=0,5"], "held out. Received: holdout=0,5"),
    (["tuner=random", "holdout=5", "data=a..b"], "a range is of numbers"),
    (["tuner=random", "holdout=5", "sparsity=0.5..1.5"], "sparsity=1.5: sparsity is a number"),
    (["tuner=random", "holdout=5", "scale=1,2"], "scale belongs to technique=variational_dropout"),
    (["tuner=random", "holdout=5", "technique=magnitude,dense", "sparsity=0.5..0.9"],
     "sparsity belongs to technique=random | "),
    (["tuner=random", "holdout=5", "technique=l0,vd"], "vd: there is no such technique"),
    (["tuner=random", "holdout=5", "technique=l0", "scale=1"], "needs something to search"),
    (["tuner=random", "holdout=5", "rate=..1"], "rate=..1: a range is of two numbers, low..high"),
    (["tuner=random", "holdout=5", "rate=1..0.1"], "a range is of two numbers, low..high"),
    (["tuner=hyperband", "holdout=5", "rate=0.1..1", "trials=3"], "hyperband has as many trials "),
])
def test_a_bad_sweep_says_what_is_wrong(words, said):
    with pytest.raises(ValueError) as error:
        sweep.Sweep(NAME, words)
    assert said in str(error.value)


def test_hyperband_searches_what_only_some_techniques_have():
    search = sweep.Sweep(NAME, ["tuner=hyperband", "holdout=5", "scale=1", "rate=0.001,0.01",
                                "technique=l0,variational_dropout", "epochs=9"])
    assert sweep._epochs(search) == 9


def test_places_are_checked_before_a_sweep(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", ""):
        with pytest.raises(ValueError, match="runs_dir is a folder, which need not exist"):
            sweep.Sweep(NAME, [f"runs_dir={folder}"])


def test_a_sweep_whose_chief_dies_ends_in_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    words = [*TINY, "epochs=1", "workers=2", f"runs_dir={tmp_path}"]
    assert command.main(["sweep", NAME, *words]) == 2
    assert "error: The chief has died (1); its output is in" in capsys.readouterr().err


def test_a_chief_that_is_no_address(tmp_path):
    with pytest.raises(ValueError, match="chief=there: give the chief's HOST:PORT"):
        sweep.run(NAME, ["chief=there", f"runs_dir={tmp_path}"])


def test_values_survive_32_bits():
    """keras-tuner's messages between chief and workers carry 32-bit floats."""
    import numpy as np

    search = sweep.Sweep(NAME, ["tuner=random", "technique=l0", "holdout=5", "scale=0.1..10",
                                "sparsity=0.9,0.95", "epochs=9"])
    values = {"sparsity": float(np.float32(0.95)), "scale": float(np.float32(0.123456)),
              "tuner/epochs": 3, "tuner/round": 1}
    assert sweep.trial_words(search, values) == [
        "technique=l0", "holdout=5", "epochs=3", "sparsity=0.95", "scale=0.123456"]


def test_the_folder_is_of_what_is_swept():
    def folder(*words):
        return sweep.Sweep(NAME, words).folder

    assert folder("workers=2", "chief=a:1") == folder("workers=7", "restarts=0") == folder()
    assert len({folder(), folder("seed=1"), folder("trials=3")}) == 3


# ---- one process


def statuses(folder):
    path, = folder.glob(f"{NAME}/sweeps/*/summary.json")
    return {tuple(trial["words"]): trial for trial in json.loads(path.read_text())["trials"]}


def test_a_grid_runs_each_configuration_once(tmp_path, capsys):
    words = [*TINY, "epochs=1", "technique=dense", "seed=0,1", f"runs_dir={tmp_path}"]
    assert command.main(["sweep", NAME, *words]) == 0
    said = capsys.readouterr().out
    assert "1 of 2 trials over, about " in said and "2 of 2 trials over, about 0 s left" in said
    assert "2 trials complete, 0 not" in said
    runs = {path: path.read_text() for path in tmp_path.glob(f"{NAME}/*/record.json")}
    assert len(runs) == 2
    assert {trial["status"] for trial in statuses(tmp_path).values()} == {"COMPLETED"}
    assert command.main(["sweep", NAME, *words]) == 0  # nothing is left to do
    assert runs == {path: path.read_text() for path in tmp_path.glob(f"{NAME}/*/record.json")}
    assert len(statuses(tmp_path)) == 2


def test_a_trial_that_fails_is_told_with_its_reason(tmp_path, capsys):
    words = [*TINY, "epochs=1", "technique=lottery", "sparsity=0.9", "rewind_step=0,3",
             f"runs_dir={tmp_path}"]
    assert command.main(["sweep", NAME, *words]) == 1
    said = capsys.readouterr().out
    assert "1 trials complete, 1 not" in said and "failed: " in said
    assert "rewind_step=3 comes after pruning begins" in said
    assert "complete runs are not repeated" in said


def test_a_search_chooses_by_held_out_images(tmp_path, capsys):
    words = [*TINY, "tuner=random", "trials=2", "epochs=1", "technique=dense", "holdout=400",
             "rate=0.001..0.01", f"runs_dir={tmp_path}"]
    assert command.main(["sweep", NAME, *words]) == 0
    trials = statuses(tmp_path)
    assert len(trials) == 2
    for found in trials.values():
        assert 0 < found["holdout_accuracy"] < 1
    said = capsys.readouterr().out.splitlines()
    rows = [line for line in said if "holdout_accuracy" in line]
    best = max(trials, key=lambda words: trials[words]["holdout_accuracy"])
    assert len(rows) == 2 and rows[0].endswith(" ".join(best))  # the best first
    assert said[-2] == (f"The best: python -m recipes run {NAME} {' '.join(best)} "
                        f"runs_dir={tmp_path} tensorboard=no")


@pytest.mark.filterwarnings("ignore:The optimal value found")  # of the process' length scale
def test_a_bayesian_search_goes_on_after_its_first_points(tmp_path):
    """Three trials at random and one that a Gaussian process chooses, in the range asked for."""
    words = [*TINY, "tuner=bayesian", "trials=4", "epochs=1", "technique=dense", "holdout=400",
             "rate=0.0001..0.1", f"runs_dir={tmp_path}"]
    assert command.main(["sweep", NAME, *words]) == 0
    trials = statuses(tmp_path)
    assert len(trials) == 4 and {found["status"] for found in trials.values()} == {"COMPLETED"}
    rates = [float(word.removeprefix("rate=")) for words in trials for word in words
             if word.startswith("rate=")]
    assert len(set(rates)) == 4 and all(0.0001 <= rate <= 0.1 for rate in rates)


@pytest.mark.slow
def test_hyperband_gives_the_best_third_more_epochs(tmp_path):
    """At most 3 epochs and a factor of 3: a bracket of 3 trials with 1 epoch, of which the best
    goes on with 3, and a bracket of 2 trials with 3."""
    words = [*TINY, "tuner=hyperband", "epochs=3", "technique=dense", "holdout=400",
             "rate=0.0001..0.1", f"runs_dir={tmp_path}"]
    assert command.main(["sweep", NAME, *words]) == 0
    trials = statuses(tmp_path)

    def of(epochs):
        return {next(word for word in words if word.startswith("rate=")): found["holdout_accuracy"]
                for words, found in trials.items() if f"epochs={epochs}" in words}

    short, long = of(1), of(3)
    assert (len(short), len(long)) == (3, 3)
    (promoted,) = set(short) & set(long)
    assert short[promoted] == max(short.values())


# ---- chief and workers


def wait_for(what, process, seconds=240):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        assert process.poll() is None, "the sweep has ended"
        time.sleep(0.02)
    raise AssertionError("it took too long")


def under_way(folder, session):
    """The process that runs a folder's run in its n-th session and has completed an epoch there."""

    def look():
        if not (folder / "record.json").exists():
            return None
        record = json.loads((folder / "record.json").read_text())
        going = record["status"] == "running" and record["sessions"] == session
        return going and len(record["epochs"]) >= 2 * session and int(
            (folder / "lock").read_text())

    return look


@pytest.mark.slow
def test_killed_workers_go_on_or_fail_their_trial_and_nothing_counts_twice(tmp_path):
    """A chief, two workers, four trials: one's worker is killed once, another's twice."""
    words = [*TINY, "epochs=40", f"runs_dir={tmp_path}"]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "recipes", "sweep", NAME, *words, "technique=dense",
         "seed=0,1,2,3", "workers=2", "restarts=1"], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "KERAS_BACKEND": keras.config.backend()})
    folders = []
    for seed in range(4):
        options, configured = runner.parse(NAME, [*words, "technique=dense", f"seed={seed}"])
        folders.append(runner.Run(NAME, configured, options).folder)
    try:
        for seed, session in ((0, 1), (1, 1), (1, 2)):
            os.kill(wait_for(under_way(folders[seed], session), launcher), signal.SIGKILL)
        said, _ = launcher.communicate(timeout=300)
    finally:
        launcher.kill()
    assert launcher.returncode == 1
    assert " of 4 trials over, about " in said
    assert "3 trials complete, 1 not" in said and said.count(": died (-9) in trial") == 3
    trials = {trial["run"]: trial for trial in statuses(tmp_path).values()}
    found = [trials.pop(folder.name) for folder in folders]
    assert trials == {}
    assert [trial["status"] for trial in found] == ["COMPLETED", "FAILED", "COMPLETED", "COMPLETED"]
    assert "died 2 times in this trial" in found[1]["message"] and found[1]["message"] in said
    records = [json.loads((folder / "record.json").read_text()) for folder in folders]
    assert [record["sessions"] for record in records] == [2, 2, 1, 1]
    assert [record["status"] for record in records] == ["complete", "running", "complete",
                                                        "complete"]
    assert {len(records[seed]["epochs"]) for seed in (0, 2, 3)} == {40}
