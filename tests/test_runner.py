"""`python -m recipes`: settings, run folders, records, and what a kill leaves."""

import dataclasses
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import types

import keras
import numpy as np
import pytest

import tf_sparsity as ts
from recipes import __main__ as command
from recipes import sos_resnet20_cifar
from recipes.data import arrays
from recipes.reporting import findings, plots, readme, state_of_sparsity, tables
from recipes.running import configuration, machine, registry, runner, training
from recipes.running.configuration import setting
from recipes.shared import sos

ROOT = pathlib.Path(__file__).parent.parent
NAME = "sos_lenet_mnist"
# 1,437 digits in batches of 360: 4 steps in an epoch
TINY = ("data=digits", "batch=360", "epochs=3")


@dataclasses.dataclass(frozen=True)
class Colours:
    technique: str = setting("red", "which", choices=("red", "green"))
    share: float = setting(0.5, "how much", least=0, below=1)
    seed: int = setting(0, "of everything", least=0)
    depth: float = setting(1.0, "of the green", least=0, most=8, only=("green",))


def parse(*words):
    return configuration.parse(Colours, words)


@pytest.fixture
def run(tmp_path):
    """Runs the tiny recipe in a folder of its own; returns the record."""

    def run(*words, callbacks=(), folder=tmp_path, name=NAME):
        options, configured = runner.parse(name, [*TINY, *words, f"runs_dir={folder}",
                                                  "tensorboard=no"])
        return runner.run(name, configured, options, callbacks)

    return run


def folder_of(record, folder):
    return folder / record["recipe"] / record["digest"]


# ---- settings


def test_words_become_typed_values():
    assert parse() == Colours("red", 0.5, 0, 1.0)
    found = parse("technique=green", "share=0.25", "seed=7", "depth=2")
    assert found == Colours("green", 0.25, 7, 2.0)
    assert isinstance(found.depth, float) and isinstance(found.seed, int)


@pytest.mark.parametrize("words, said", [
    (["shar=0.1"], "no setting 'shar'. Did you mean share?"),
    (["zzz=1"], "There are: technique, share, seed, depth."),
    (["share"], "key=value, without spaces. Received: 'share'"),
    (["seed=1", "seed=2"], "seed is given twice: seed=1 and seed=2"),
    (["technique=gren"], "gren: there is no such technique. Did you mean green?"),
    (["seed=1.5"], "seed=1.5: seed is an integer from 0, for instance seed=0"),
    (["share=x"], "share is a number from 0 below 1"),
    (["share=-1"], "In range is, for instance, share=0."),
    (["share=1"], "In range is, for instance, share=0.5."),
    (["share=nan"], "In range is, for instance, share=0.5."),
    (["technique=green", "depth=9"], "In range is, for instance, depth=8."),
    (["depth=2"], "depth belongs to technique=green. Received: technique=red"),
])
def test_a_bad_setting_names_the_way_out(words, said):
    with pytest.raises(ValueError) as error:
        parse(*words)
    assert said in str(error.value)


def test_the_hash_is_of_what_applies():
    assert configuration.values(parse()) == {"technique": "red", "share": 0.5, "seed": 0}
    name = configuration.digest("a", parse())
    assert len(name) == 12 and int(name, 16) >= 0
    assert name == configuration.digest("a", dataclasses.replace(parse(), depth=3.0))
    others = {configuration.digest("a", parse(word)) for word in ("share=0.1", "seed=1",
                                                                  "technique=green")}
    assert len(others | {name, configuration.digest("b", parse())}) == 5


def test_words_repeat_a_configuration():
    found = parse("technique=green", "depth=2.5")
    assert configuration.words(found) == ["technique=green", "depth=2.5"]
    assert parse(*configuration.words(found)) == found


# ---- the command line


def test_list(capsys):
    assert command.main(["list"]) == 0
    printed = capsys.readouterr().out
    for name in registry.RECIPES:
        assert f"{name}  " in printed and registry.first_line(registry.load(name)) in printed
    for name in registry.PROGRAMS:
        assert f"python -m recipes.{name}" in printed
    assert command.main(["list", NAME]) == 0
    printed = capsys.readouterr().out
    for field in registry.load(NAME).Configuration.__dataclass_fields__:
        assert f"  {field}=" in printed
    assert "  frequency=100* " in printed and configuration.STAR in printed


@pytest.mark.parametrize("words, said", [
    (["lst"], "no command 'lst'. Did you mean list?"),
    (["run"], "run needs the name of a recipe: sos_lenet_mnist"),
    (["run", "sos_lenet_mnst"], "no recipe 'sos_lenet_mnst'. Did you mean sos_lenet_mnist?"),
    (["run", "l0_mnist"], "a program of its own: python -m recipes.l0_mnist"),
    (["run", NAME, "epoch=1"], "no setting 'epoch'. Did you mean epochs"),
    (["run", NAME, "run_dir=x"], "Did you mean runs_dir"),
    (["run", NAME, "tensorboard=maybe"], "tensorboard is yes or no"),
    (["run", NAME, "runs_dir="], "runs_dir is a folder"),
    (["run", NAME, "seed=4294967295"], "In range is, for instance, seed=4294966295."),
    (["run", NAME, "technique=l0", "initial_keep=0.999"], "for instance, initial_keep=0.99009."),
    (["run", NAME, f"runs_dir={__file__}"], "runs_dir is a folder"),
    (["run", NAME, "rewind_step=3"], "rewind_step belongs to technique=lottery"),
    (["run", NAME, "technique=vd"], "technique=vd: there is no such technique. There are: dense,"),
    (["list", NAME, "x"], "list takes the name of one recipe"),
    (["table", "nothere"], "There is no recipe 'nothere'"),
])
def test_a_bad_command_says_what_there_is(words, said, capsys):
    assert command.main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", registry.RECIPES)
def test_every_grid_is_of_valid_configurations(name):
    module = registry.load(name)
    assert module.DIFFERENCES
    for block in module.GRID:
        for key, values in block.items():
            for value in values:
                words = {"technique": block["technique"][0], key: value}
                configuration.parse(module.Configuration, [f"{k}={v}" for k, v in words.items()])


# ---- runs


def test_a_run_writes_its_record_and_the_same_again_is_a_no_op(run, tmp_path, capsys):
    record = run("sparsity=0.75", "seed=3")
    folder = folder_of(record, tmp_path)
    assert json.loads((folder / "record.json").read_text()) == record
    assert record["status"] == "complete" and record["sessions"] == 1
    assert record["configuration"]["sparsity"] == 0.75 and record["seed"] == 3
    assert "rewind_step" not in record["configuration"]
    assert record["command"].startswith(f"KERAS_BACKEND={keras.config.backend()} ")
    assert record["command"].endswith(
        f"python -m recipes run {NAME} sparsity=0.75 seed=3 epochs=3 batch=360 data=digits")
    assert record["versions"]["keras"] == keras.__version__
    assert record["versions"]["tf_sparsity"] == ts.__version__
    assert record["where"]["backend"] == keras.config.backend() and record["where"]["devices"]
    assert record["commits"] == [machine.commit()]
    assert record["seconds"] > 0 and record["peak_memory"]["process"] > 1e8
    assert [entry["epoch"] for entry in record["epochs"]] == [1, 2, 3]
    # Steps 1 (a tenth of 12) to 8: complete in the second epoch
    assert [entry["sparsity"] for entry in record["epochs"]][1:] == [0.75, 0.75]
    assert {"loss", "accuracy", "val_loss", "val_accuracy", "seconds"} <= set(record["epochs"][0])
    final = record["report"]
    # 235,200, 30,000 and 1,000 weights
    assert [kernel["zeros"] for kernel in final["kernels"]] == [176_400, 22_500, 750]
    assert final["zeros"] == 199_650 and final["compression"] == 4.0
    assert final["accuracy"] == pytest.approx(record["epochs"][-1]["val_accuracy"], abs=1e-6)
    assert not (folder / "backup").exists()

    said = capsys.readouterr().out
    assert "epoch 3/3  loss " in said and "sparsity 0.7500" in said and "about 0 s left" in said
    written = (folder / "record.json").stat().st_mtime_ns
    assert run("sparsity=0.75", "seed=3") == record
    assert f"complete on {keras.config.backend()}, " in capsys.readouterr().out
    assert (folder / "record.json").stat().st_mtime_ns == written


class Leave(keras.callbacks.Callback):
    """Leaves training inside an epoch, as an interrupt from the keyboard does."""

    def __init__(self, epoch, batch=1):
        super().__init__()
        self.at = epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise KeyboardInterrupt


def without_time(record):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in record["epochs"]]


@pytest.mark.any_backend
@pytest.mark.parametrize("technique", ["dense", "magnitude", "variational_dropout"])
def test_an_interrupted_run_goes_on_bit_for_bit(run, tmp_path, technique):
    straight = run(f"technique={technique}", folder=tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        run(f"technique={technique}", callbacks=[Leave(2)])
    folder = folder_of(straight, tmp_path)
    left = json.loads((folder / "record.json").read_text())
    assert left["status"] == "running" and len(left["epochs"]) == 2
    resumed = run(f"technique={technique}")
    assert resumed["sessions"] == 2 and resumed["seconds"] > left["seconds"]
    assert without_time(resumed) == without_time(straight)
    assert resumed["report"] == straight["report"]


def test_a_run_that_was_stopped_between_training_and_record_only_reports(run, tmp_path,
                                                                         monkeypatch):
    straight = run(folder=tmp_path / "straight")
    monkeypatch.setattr(sos, "report", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.undo()
    resumed = run(callbacks=[Leave(0, 0), Leave(1, 0), Leave(2, 0)])  # no step is trained
    assert without_time(resumed) == without_time(straight)
    assert resumed["report"] == straight["report"]


CHILD = """
    import os, signal, sys
    import keras
    from recipes.running import runner

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def on_train_batch_end(self, batch, logs=None):
            if (self.epoch, batch) == (1, 2):
                os.kill(os.getpid(), signal.SIGKILL)

    options, configured = runner.parse(sys.argv[1], sys.argv[2:])
    runner.run(sys.argv[1], configured, options, [Kill()])
"""


def test_a_killed_process_goes_on_bit_for_bit(run, tmp_path):
    words = ["technique=l0", "sparsity=0.9", "seed=1"]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), NAME, *TINY, *words, "tensorboard=no",
         f"runs_dir={tmp_path / 'killed'}"], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={**os.environ, "KERAS_BACKEND": keras.config.backend(), "PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL, done.stderr
    straight = run(*words)
    resumed = run(*words, folder=tmp_path / "killed")
    assert (straight["sessions"], resumed["sessions"]) == (1, 2)
    assert without_time(resumed) == without_time(straight)
    assert resumed["report"] == straight["report"]
    trained = [np.load(folder_of(straight, folder) / "trained.npz")
               for folder in (tmp_path, tmp_path / "killed")]
    for name in trained[0]:
        assert np.array_equal(trained[0][name], trained[1][name]), name


def test_weights_and_metrics_of_a_backup_change_together(tmp_path):
    """A kill after the weights of an epoch were written, before the backup is complete."""
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    backup = training.Backup(tmp_path, note=lambda epochs: None)
    backup.set_model(model)
    for epoch in (0, 1):
        model.layers[0].kernel.assign([[epoch], [epoch]])
        backup.on_epoch_begin(epoch)
        backup.on_epoch_end(epoch, {"loss": float(epoch)})
    model.layers[0].kernel.assign([[2.0], [2.0]])
    keras_own = keras.callbacks.BackupAndRestore(str(tmp_path / "epoch3"))
    keras_own.set_model(model)
    keras_own.on_epoch_end(2)  # the new folder is whole, but nothing names it yet
    again = training.Backup(tmp_path, note=lambda epochs: None)
    again.set_model(model)
    again.on_train_begin()
    assert np.array_equal(model.layers[0].kernel, [[1.0], [1.0]])
    assert [entry["loss"] for entry in again.epochs] == [0.0, 1.0]


def test_a_run_does_not_go_on_under_other_versions(run, tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[Leave(1)])
    monkeypatch.setattr(machine.ts, "__version__", "9.9")
    with pytest.raises(ValueError, match=r"interrupted run of tf_sparsity .* \(now 9.9\).*"
                                         "another runs_dir"):
        run()


def test_a_run_does_not_go_on_with_other_kernels(run, tmp_path, monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[Leave(1)])
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    with pytest.raises(ValueError, match=r"run of ONEDNN_MAX_CPU_ISA None \(now AVX2\)\."):
        run()


@pytest.fixture
def other_digits(tmp_path):
    """The folder of a digits.npz of which one pixel is another."""
    (x, y), (x_test, y_test) = arrays.load("digits")
    x = x.copy()
    x[0, 0, 0] = 1
    folder = tmp_path / "other_digits"
    folder.mkdir()
    np.savez(folder / "digits.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return folder


def test_a_run_does_not_go_on_with_other_data(run, other_digits):
    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[Leave(1)])
    with pytest.raises(ValueError, match="an interrupted run on other data .*Give the data_dir"):
        run(f"data_dir={other_digits}")
    assert run()["sessions"] == 3  # the refused one was one; nothing is lost


def test_masks_and_trainings_of_other_data_are_refused(run, other_digits):
    run()
    with pytest.raises(ValueError, match="needs the run .* was made on .* and the data .* here"):
        run("technique=lottery", f"data_dir={other_digits}")


def test_masks_of_another_place_are_refused(run, tmp_path):
    record = run()
    path = folder_of(record, tmp_path) / "record.json"
    record["where"]["devices"] = ["gpu: X"]
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"made on {keras.config.backend()}, gpu and the data"):
        run("technique=lottery")


def test_what_a_run_without_an_epoch_has_left_is_not_taken(run, tmp_path):
    """Nobody knows on which backend, or with which versions, the rewind point was made."""
    words = ("technique=lottery", "rewind_step=1")
    straight = run(*words, folder=tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        run(*words, callbacks=[Leave(0)])
    left = folder_of(straight, tmp_path) / "rewind_point.npz"
    with np.load(left) as point:
        np.savez(left, *(0 * value for value in point.values()))
    assert without_time(run(*words)) == without_time(straight)


@pytest.mark.parametrize("text, said", [
    ('{"status": "comp', "is damaged: Unterminated string"), ("", "is damaged: Expecting value"),
    ("[]", "is damaged: it holds a list"), ("{}", "is no record of a run: it has no status"),
    ('{"status": "complete", "where": {}}', "is no record of a run: it has no conf")])
def test_a_damaged_record_is_named(run, tmp_path, capsys, text, said):
    _, configured = runner.parse(NAME, TINY)
    path = tmp_path / NAME / configuration.digest(NAME, configured) / "record.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    for words in (["run", NAME, *TINY], ["table", NAME], ["plot", NAME]):
        assert command.main([*words, f"runs_dir={tmp_path}"]) == 2
        error = capsys.readouterr().err
        assert f"error: {path} {said}" in error and "Remove" in error


def test_what_a_run_needs_and_has_lost_is_named(run, tmp_path):
    masks = folder_of(run(), tmp_path) / "masks.npz"
    whole = masks.read_bytes()
    for damaged, said in ((b"junk", "is no .npz file of arrays"), (None, "is not there")):
        masks.unlink() if damaged is None else masks.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"masks.npz {said}. Remove .* is made anew then"):
            run("technique=lottery")
    masks.write_bytes(whole)
    assert run("technique=lottery")["status"] == "complete"


def test_a_damaged_backup_is_named(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[Leave(1)])
    (weights,) = tmp_path.glob("*/*/backup/epoch1/**/*.h5")
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ValueError, match="The backup in .*epoch1 is damaged: .*Remove .* anew"):
        run()


def test_an_interrupt_says_what_goes_on(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(runner, "run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert command.main(["run", NAME, f"runs_dir={tmp_path}"]) == 130
    assert "The same command again goes on" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_named(capsys):
    assert command.main(["run", NAME, *TINY, "runs_dir=/proc/nothing"]) == 2
    assert "error: " in (said := capsys.readouterr().err) and "/proc/nothing" in said


def test_a_run_of_code_without_a_name_says_so(run, monkeypatch, capsys):
    """Two dirty trees have one name and may differ."""
    monkeypatch.setattr(machine, "commit", lambda: "abc-dirty")
    run()
    run()
    assert ", made at commit abc-dirty" in capsys.readouterr().out


def test_a_recipe_that_lacks_a_part_is_told(monkeypatch):
    monkeypatch.delattr(registry.load(NAME), "DIFFERENCES")
    with pytest.raises(ValueError, match=f"recipes/{NAME}.py has no DIFFERENCES: see "):
        registry.load(NAME)


def test_a_run_without_an_epoch_begins_anew(run, tmp_path, monkeypatch, capsys):
    """Whatever its record says: nothing was trained there."""
    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[Leave(0)])
    monkeypatch.setattr(machine.ts, "__version__", "9.9")
    record = run()
    assert capsys.readouterr().out.count("begins in") == 2
    assert (record["sessions"], record["versions"]["tf_sparsity"]) == (1, "9.9")


def test_an_epoch_that_is_saved_and_not_yet_noted_counts(run, tmp_path, monkeypatch):
    """A kill between backup and record: its weights are those of the versions of that run."""
    straight = run(folder=tmp_path / "straight")
    monkeypatch.setattr(runner.Run, "_note", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.undo()
    assert json.loads((folder_of(straight, tmp_path) / "record.json").read_text())["epochs"] == []
    with monkeypatch.context() as other, pytest.raises(ValueError, match="interrupted run of tf_"):
        other.setattr(machine.ts, "__version__", "9.9")
        run()
    resumed = run(callbacks=[Leave(0, 0)])  # the first epoch is not trained again
    assert resumed["sessions"] == 2 and without_time(resumed) == without_time(straight)


def test_differences_are_those_of_the_run(run):
    def said(*words):
        options, configured = runner.parse(NAME, [*TINY, *words])
        return [d.sentence for d in registry.load(NAME).DIFFERENCES if d.holds(configured)]

    ranked = "most important weights when training is over"
    assert [any(ranked in s for s in said(*words)) for words in (
        ("technique=dense",), ("technique=l0",), ("technique=l0", "reach=controller"))] == [
            False, True, False]
    assert any("1.5 times" in s for s in said("distribution=extended"))
    assert run("technique=dense")["differences"] == said("technique=dense")


def test_a_missing_folder_of_data_is_told_and_not_made(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="there is no .*none, which TFDS_DATA_DIR names"):
        arrays.load("mnist")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name, usual", [
    ("sos_lenet_mnist", 100), ("sos_resnet20_cifar", 61), ("sos_transformer_multi30k", 68),
    ("sos_transformer_wmt14", 1000), ("sos_resnet50_imagenet", 2000)])
def test_a_controller_has_200_updates_of_a_run_unless_told_otherwise(name, usual):
    """With the frequency of pruning it had 64 in a run of the narrow ResNet-20, and missed."""
    for technique in sos.LEARNED:
        def method(*words, steps=40_000):
            kind = registry.load(name).Configuration
            c = configuration.parse(kind, [f"technique={technique}", "scale=1", *words]
                                    if technique != "continuous_sparsification" else
                                    [f"technique={technique}", *words])
            assert configuration.parse(kind, configuration.words(c)) == c
            task = sos.Task(None, types.SimpleNamespace(examples=1000), None, None, None)
            return sos.method(c, steps, None, task).for_run(steps)

        assert method("reach=rank").frequency == usual
        assert method("reach=controller").frequency == 200
        assert method("reach=controller", "frequency=70").frequency == 70


def test_order_depends_on_seed_and_epoch_alone():
    x, y = np.arange(10.0)[:, None], np.arange(10)
    batches = training.Batches(x, y, 4, seed=5)
    assert [len(batches[i][0]) for i in range(len(batches))] == [4, 4, 2]
    batches.begin(2)
    seen = np.concatenate([batches[i][1] for i in range(3)])
    assert np.array_equal(seen, np.random.default_rng([5, 2]).permutation(10))
    assert np.array_equal(batches[1][0][:, 0], batches[1][1])


def test_duration():
    assert [training.duration(s) for s in (0.4, 59.4, 125, 11_520)] == [
        "0 s", "59 s", "2 min 05 s", "3 h 12 min"]


# ---- techniques


def test_a_technique_without_a_method_is_none_of_the_others():
    @dataclasses.dataclass(frozen=True)
    class New(sos.Settings):
        frequency: int = 10

    task = types.SimpleNamespace(batches=types.SimpleNamespace(examples=1000))
    with pytest.raises(ValueError, match="technique=new_method has no method here"):
        sos.method(dataclasses.replace(New(), technique="new_method"), 100, None, task)


@pytest.mark.parametrize("technique", ["random", "l0", "continuous_sparsification"])
def test_a_sparsity_is_met_exactly(run, technique):
    report = run(f"technique={technique}", "sparsity=0.9")["report"]
    assert report["zeros"] == 239_580  # of 266,200
    assert (report["natural"] is None) == (technique == "random")


@pytest.mark.parametrize("technique", [
    pytest.param(technique, marks=[] if technique == "l0" else [pytest.mark.slow])
    for technique in sos.LEARNED])
def test_one_training_serves_every_rank(run, tmp_path, monkeypatch, technique):
    """The run at 0.8, made from the training of 0.9, is the run that trains at 0.8 itself."""
    words = [f"technique={technique}", "sparsity=0.8"]
    ranked = run(*words)
    assert ranked["epochs"] == [] and ranked["report"]["zeros"] == 212_960
    source = json.loads((tmp_path / NAME / ranked["report"]["trained_in"] /
                         "record.json").read_text())
    assert source["configuration"]["sparsity"] == sos.RANKED_AT and len(source["epochs"]) == 3
    options, configured = runner.parse(NAME, [*TINY, *words])
    this = runner.Run(NAME, configured, {**options, "runs_dir": str(tmp_path / "direct"),
                                         "tensorboard": "no"})
    monkeypatch.setattr(sos, "RANKED_AT", 0.8)
    this.folder.mkdir(parents=True)
    this.execute()
    direct = this.result()["report"]
    assert len(this.result()["epochs"]) == 3
    assert {k: v for k, v in ranked["report"].items() if k != "trained_in"} == direct


def test_lives_of_a_mask(run, tmp_path):
    """Tickets and scratch runs keep the mask of the magnitude run; the budget of b is doubled."""
    runs = {technique: run(f"technique={technique}", *more) for technique, more in (
        ("lottery", ()), ("scratch_e", ("initialization=augmented",)), ("scratch_b", ()))}
    magnitude = run()
    assert magnitude["sessions"] == 1 and (folder_of(magnitude, tmp_path) / "masks.npz").exists()
    for technique, record in runs.items():
        assert record["report"]["kernels"] == magnitude["report"]["kernels"], technique
        assert len(record["epochs"]) == (6 if technique == "scratch_b" else 3)
    plain = run("technique=scratch_e")  # other weights than the ticket's, the same mask
    assert plain["epochs"][0]["loss"] != runs["lottery"]["epochs"][0]["loss"]
    rewound = run("technique=lottery", "rewind_step=1")
    assert rewound["epochs"][0]["loss"] != runs["lottery"]["epochs"][0]["loss"]


def test_rewinding_into_the_pruning_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="rewind_step=2 comes after pruning begins .step 1 of 12"):
        run("technique=lottery", "rewind_step=2")
    assert not list(tmp_path.glob("*/*/masks.npz"))  # before the magnitude run, not after it
    assert not list(tmp_path.glob("*/*/record.json"))  # a run that was refused is none


def test_the_rewind_point_is_the_run_at_that_step(run, tmp_path):
    """Dense training for k steps, and the dense run itself, stopped after its first epoch."""
    options, c = runner.parse(NAME, [*TINY, "technique=lottery", "rewind_step=4",
                                     "pruning_begin=0.4", f"runs_dir={tmp_path}"])
    recipe = registry.load(NAME)
    task = sos.images(c, recipe.lenet.lenet300, *arrays.load("digits"), recipe.optimizer,
                      last="^classes/")
    keras.utils.set_random_seed(c.seed)
    this = runner.Run(NAME, c, options)
    this.folder.mkdir(parents=True)
    point = sos._after(c, this, task, task.network(), steps=12)
    keras.utils.set_random_seed(c.seed)
    dense = task.network()
    task.compile(dense, 12)
    training.fit(dense, task.batches, task.validation, epochs=1,
                 folder=tmp_path / "dense", note=lambda epochs: None)
    again = sos._after(c, this, None, task.network(), steps=12)  # from its file, without training
    for ours, theirs, kept in zip(point.get_weights(), dense.get_weights(), again.get_weights(),
                                  strict=True):
        assert np.array_equal(ours, theirs) and np.array_equal(kept, theirs)


def test_extended_map():
    # 8,000 zeros wanted of 10,000; the last layer gives 0.8 of 1,000, the first none of 1,000:
    # 7,200 of the other 8,000
    sizes = {"a/kernel": 1000, "b/kernel": 8000, "c/kernel": 1000}
    sparsity, fixed = sos.extended(sizes, 0.8, "^a/", "^c/")
    assert sparsity == pytest.approx(0.9) and fixed == {"^a/": 0.0, "^c/": 0.8}
    assert sos.extended(sizes, 0.5, None, "^c/") == (0.5, {"^c/": 0.5})
    with pytest.raises(ValueError, match="distribution=extended cannot reach a sparsity of 0.95"):
        sos.extended(sizes, 0.95, "^a/", "^c/")


def test_extended_run(run):
    """The paper's rule: the last kernel at 0.8, and all of them together at what was asked for."""
    kernels = run("distribution=extended")["report"]["kernels"]
    assert kernels[2]["zeros"] == 800
    assert sum(kernel["zeros"] for kernel in kernels) == 239_580


def test_augmented_initial_weights():
    """Glorot's limit and He's deviation with fans scaled by the density 1/4."""
    model = keras.Sequential([keras.Input((20, 20, 1)), keras.layers.Conv2D(16, 5),
                              keras.layers.Flatten(), keras.layers.Dense(300)])
    kept = {f"{layer.name}/kernel": np.arange(math.prod(layer.kernel.shape)) % 4 == 0
            for layer in model.layers if layer.weights}
    sos.augment_initial_weights(model, kept, seed=0)
    conv, dense = (np.asarray(model.layers[i].kernel) for i in (0, 2))
    # places 25 x filters 16 x 1/4 = 100; 400 weights: three standard errors are 3 / sqrt(800)
    assert conv.std() == pytest.approx((2 / 100) ** 0.5, rel=0.11)
    limit = (6 / (0.25 * (16 * 256 + 300))) ** 0.5
    assert limit * 0.999 < np.abs(dense).max() <= limit


def test_statistics_are_those_of_the_network_that_is_left():
    """By hand: means over batches of the means and variances of x @ (w * mask)."""
    generator = np.random.default_rng(0)
    x = generator.normal(1, 2, (10, 4)).astype("float32")
    batches = training.Batches(x, np.zeros(10, "int32"), 4, seed=3)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, use_bias=False, name="d"),
                              keras.layers.BatchNormalization(), keras.layers.Dense(2)])
    model = ts.sparsify(model, ts.L0Regularization(10, target_sparsity=0.5), select="^d/")
    ts.update(model)
    before = [np.array(w) for w in model.weights]
    training.estimate_statistics(model, batches, count=2)
    kernel = np.asarray(model.get_layer("d").kernel)
    assert (kernel == 0).sum() == 6
    batches.begin(0)
    seen = [batches[i][0] @ kernel for i in range(2)]  # the third batch is left out
    norm = model.layers[1]
    # float32 sums of 4 numbers, in another order
    np.testing.assert_allclose(norm.moving_mean, np.mean([y.mean(0) for y in seen], 0), rtol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, np.mean([y.var(0) for y in seen], 0),
                               rtol=1e-5)
    changed = [w.path for w, old in zip(model.weights, before) if (np.array(w) != old).any()]
    assert [path.split("/")[-1] for path in changed] == ["moving_mean", "moving_variance"]


def test_holdout_is_kept_out(run):
    record = run("holdout=437", "technique=dense")
    assert record["report"]["steps"] == 9  # 1,000 images in batches of 360: 3 steps, 3 epochs
    assert record["report"]["holdout_accuracy"] == pytest.approx(
        record["epochs"][-1]["val_accuracy"], abs=1e-6)
    with pytest.raises(ValueError, match="there are 1437 training images"):
        run("holdout=1437")


# ---- tables


def stored(folder, seed, accuracy, epochs=3, backend="jax", model="lenet300", trained=None, **own):
    """A complete record, as small as tables, plots and the page need it; of 10 + 2 seed seconds."""
    trained = trained or epochs
    record = {"status": "complete", "seed": seed,
              "epochs": [{"seconds": (10 + 2 * seed) / trained}] * trained,
              "where": {"backend": backend}, "versions": {"keras": "3.15.1", "jax": None},
              "digest": f"hash{seed}", "command": f"run --seed {seed} <here>", "seconds": 12.0,
              "configuration": {"seed": seed, "epochs": epochs, "model": model, **own},
              "report": {"accuracy": accuracy, "natural": None,
                         "kernels": [{"name": "dense1/kernel", "sparsity": 0.5},
                                     {"name": "classes/kernel", "sparsity": 0.25}]}}
    path = folder / NAME / f"{seed}{accuracy}{model}" / "record.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))


def test_table_of_the_runs(tmp_path, capsys):
    for seed, accuracy in ((0, 0.98), (1, 0.96)):
        stored(tmp_path, seed, accuracy, technique="dense")
    stored(tmp_path, 0, 0.873, technique="magnitude", sparsity=0.9, distribution="erk")
    stored(tmp_path, 5, 0.5, technique="random", sparsity=0.9, epochs=7)
    assert command.main(["table", NAME, f"runs_dir={tmp_path}"]) == 0
    rows = [[cell.strip() for cell in line.strip("|").split("|")]
            for line in capsys.readouterr().out.splitlines()]
    # 1 - 0.873 / 0.97 = 0.1; no dense run has 7 epochs
    assert rows[0] == tables.columns(registry.ACCURACY) and rows[0][3] == "test accuracy %"
    assert rows[2:] == [
        ["dense", "0", "epochs=3", "97.00 ± 1.41", "0.00", "0.500 - 0.250", "", "11 ± 1", "3",
         "jax", "2 (0, 1)"],
        ["random", "0.9", "epochs=7", "50.00", "", "0.500 - 0.250", "", "20", "7", "jax", "1 (5)"],
        ["magnitude", "0.9", "epochs=3 distribution=erk", "87.30", "10.00", "0.500 - 0.250", "",
         "10", "3", "jax", "1 (0)"]]
    assert command.main(["table", NAME, f"runs_dir={tmp_path / 'none'}"]) == 2
    assert "no complete run of sos_lenet_mnist" in capsys.readouterr().err


def test_a_record_of_another_version_is_named(tmp_path, capsys):
    stored(tmp_path, 0, 0.9, technique="dense", momentum=0.9)
    for what in ("table", "plot", "report"):
        assert command.main([what, NAME, f"runs_dir={tmp_path}"]) == 2
        assert ("00.9lenet300/record.json is of another version of sos_lenet_mnist, with the "
                "setting momentum, which" in capsys.readouterr().err)


def test_the_sparsity_of_many_layers_is_three_numbers():
    assert tables._each([0.5] * 6) == ["0.500"] * 6
    assert tables._each([0.1, 0.75, 0.25, 0.5, 0.5, 0.5, 0.9]) == [
        "0.100", "(0.250 to 0.750)", "0.900"]


def test_a_row_under_the_controller_has_what_was_asked_and_what_was_reached(tmp_path):
    stored(tmp_path, 0, 0.9, technique="l0", sparsity=0.8, reach="controller", frequency=None)
    path, = tmp_path.glob("*/*/record.json")
    record = json.loads(path.read_text())
    record["report"]["sparsity"] = 0.81234
    path.write_text(json.dumps(record))
    columns, (row,) = tables.rows(NAME, tmp_path)
    assert row[columns.index("sparsity")] == "0.8123 of 0.8"


def test_the_epochs_of_a_row_are_those_that_were_trained(tmp_path):
    stored(tmp_path, 0, 0.9, technique="scratch_b", sparsity=0.9, trained=6)
    columns, (row,) = tables.rows(NAME, tmp_path)
    assert row[columns.index("epochs")] == 6


def test_the_sparsity_of_a_row_is_the_one_that_was_reached():
    reports = [{"sparsity": 0.91}, {"sparsity": 0.93}]
    key = "l0", 0.9, (("reach", "rank"),), "jax"
    assert tables.met(key, reports) == 0.9
    for reach in ("penalty", "controller"):
        assert tables.met((*key[:2], (("reach", reach),), "jax"), reports) == pytest.approx(0.92)


def test_plot_of_the_runs(tmp_path, capsys):
    stored(tmp_path, 0, 0.98, technique="dense")
    for seed, accuracy in ((0, 0.931), (1, 0.833)):
        stored(tmp_path, seed, accuracy, technique="random", sparsity=0.5)
    # 1 - 0.931 / 0.98 = 0.05 and 1 - 0.833 / 0.98 = 0.15
    stored(tmp_path, 2, 0.5, technique="random", sparsity=0.5, model="lenet5")  # none is dense
    ((network, curves),) = plots.curves(NAME, tmp_path).items()
    (curve,) = curves.items()
    assert network == "model=lenet300" and curve[0] == "random epochs=3 (jax)"
    assert curve[1] == [pytest.approx((0.5, 0.1, 0.05 * 2 ** 0.5))]
    assert command.main(["plot", NAME, f"runs_dir={tmp_path}", f"out={tmp_path / 'a.png'}"]) == 0
    assert (tmp_path / "a.png").stat().st_size > 10_000
    lacking = f"python -m recipes run {NAME} technique=dense epochs=3 model=lenet5 (jax)"
    assert tables.lacking_dense(NAME, tmp_path) == [lacking]
    assert f"are left out. It takes:\n  {lacking}\n" in capsys.readouterr().out
    stored(tmp_path / "sparse", 2, 0.5, technique="random", sparsity=0.5, model="lenet5")
    with pytest.raises(ValueError) as error:
        plots.curves(NAME, tmp_path / "sparse")
    assert str(error.value).endswith(f"Make them: {lacking}")
    assert command.main(["plot", NAME, f"runs_dir={tmp_path / 'none'}"]) == 2
    assert "no complete run of sos_lenet_mnist with a dense one" in capsys.readouterr().err


def test_every_curve_looks_different():
    """As many as LeNet has: four distributions, each in two places."""
    labels = [" ".join(filter(None, ["magnitude", words, place])) for place in ("(jax)", "(tf)")
              for words in ("", *(f"distribution={d}" for d in ("erk", "extended", "global")))]
    look = plots._looks(NAME, labels)
    assert len({tuple(look(label).items()) for label in labels}) == len(labels) == 8


def test_page_of_the_runs(tmp_path, capsys):
    for seed, accuracy in ((0, 0.931), (1, 0.833)):
        stored(tmp_path, seed, accuracy, technique="random", sparsity=0.5)
    (axes,) = plots.layers(NAME, tmp_path).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[50.0, 25.0]]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["dense1", "classes"]

    out = tmp_path / "page.html"
    assert command.main(["report", NAME, f"runs_dir={tmp_path}", f"out={out}"]) == 0
    text = out.read_text()
    assert text.count("<img ") == 1 and "with a dense one of the same settings" in text
    stored(tmp_path, 0, 0.98, technique="dense")
    assert command.main(["report", NAME, f"runs_dir={tmp_path}", f"out={out}"]) == 0
    text = out.read_text()
    assert text.count("<img ") == text.count('src="data:image/png;base64,') == 2
    assert "http" not in text and "<script" not in text  # opens without a network
    assert "<td>88.20 ± 6.93</td>" in text and "jax, keras 3.15.1" in text
    assert "run --seed 1 &lt;here&gt;" in text and "<h1>sos_lenet_mnist</h1>" in text
    assert command.main(["report", NAME, f"runs_dir={tmp_path / 'none'}"]) == 2
    assert not (tmp_path / "none" / NAME / "report.html").exists()


def test_results_that_are_kept(tmp_path, monkeypatch):
    runs, kept = tmp_path / "runs", tmp_path / "kept"
    stored(runs, 0, 0.98, technique="dense")
    stored(runs, 1, 0.931, technique="random", sparsity=0.5)
    running = runs / NAME / "other" / "record.json"
    running.parent.mkdir()
    running.write_text(json.dumps({"status": "running"}))
    assert readme.keep(NAME, runs, kept) == 2
    assert sorted(path.relative_to(kept / NAME).as_posix() for path in kept.rglob("*.*")) == [
        "hash0/record.json", "hash1/record.json", "layers.png", "relative_loss.png"]
    stored(runs, 3, 0.5, technique="dense", data="digits")
    with pytest.raises(ValueError, match="1 runs of .* are on data=digits, hash3 for one"):
        readme.keep(NAME, runs, kept)
    stored(tmp_path / "sparse", 4, 0.5, technique="random", sparsity=0.5, epochs=7)
    with pytest.raises(ValueError, match="no complete run of .* with a dense one"):
        readme.keep(NAME, tmp_path / "sparse", tmp_path / "none")
    assert not (tmp_path / "none").exists()  # nothing is copied that cannot be shown
    assert readme.keep(NAME, tmp_path / "sparse", kept) == 1  # beside those that are kept
    (kept / NAME / "hash4" / "record.json").unlink()
    marks = "".join(f"<!-- {name}: made by recipes/reporting/readme.py --><!-- end of {name} -->"
                    for name in ("overview", *registry.EXPERIMENTS, NAME,
                                 *(f"findings, {table}" for table in findings.TABLES)))
    assert "| random | 0.5 | epochs=3 | 93.10 |" in readme.filled(marks, kept)
    with pytest.raises(ValueError, match=f"no place for the table of {NAME}"):
        readme.filled(marks.replace(NAME, ""), kept)
    monkeypatch.setattr(findings, "NETWORKS", {})
    with pytest.raises(ValueError, match=f"{NAME} has kept results, and no network in"):
        readme.filled(marks, kept)


# From the published CSVs, as the paper's README and its tables have them
@pytest.mark.parametrize("network, technique, sparsity, quality", [
    ("ResNet-50", "magnitude", 0.5, 0.7653), ("ResNet-50", "magnitude", 0.9, 0.7391),
    ("ResNet-50", "random", 0.95, 0.5808), ("ResNet-50", "variational_dropout", 0.947, 0.7216),
    ("Transformer", "magnitude", 0.8, 24.65), ("Transformer", "l0", 0.975, 17.67),
    ("Transformer", "variational_dropout", 0.897, 21.82), ("Transformer", "random", 0.98, 10.94)])
def test_the_best_published_runs(network, technique, sparsity, quality):
    near = [q for s, q in state_of_sparsity.best(network, technique) if abs(s - sparsity) < 5e-4]
    assert near and round(near[0], 4 if quality < 1 else 2) == quality


def test_published_dense_runs():
    assert state_of_sparsity.dense("ResNet-50") == pytest.approx(0.7669, abs=5e-5)
    assert state_of_sparsity.dense("Transformer") == pytest.approx(27.29, abs=5e-3)


def test_the_best_published_regularization():
    """As its table of magnitude pruning has the best runs: less of it where there is more sparsity.
    """
    for sparsity, best, bleu in ((0.5, "dropout+label_smoothing", 26.33),
                                 (0.8, "label_smoothing", 24.65), (0.98, "none", 16.37)):
        found = state_of_sparsity.best_by_regularization(sparsity)
        assert max(found, key=found.get) == best and found[best] == bleu


# Means of 9 and of 25 runs
@pytest.mark.parametrize("network, sparsity, lottery, scratch_e, scratch_b", [
    ("ResNet-50", 0.9, 0.6738, 0.6731, 0.6900), ("Transformer", 0.8, 23.47, 21.79, 22.66),
    ("Transformer", 0.95, 18.89, 17.93, 18.47)])
def test_published_second_lives(network, sparsity, lottery, scratch_e, scratch_b):
    found = state_of_sparsity.second_lives(network, sparsity)
    assert {len(runs) for runs in found.values()} == {9 if network == "ResNet-50" else 25}
    for what, mean in (("lottery", lottery), ("scratch_e", scratch_e), ("scratch_b", scratch_b)):
        assert np.mean(found[what]) == pytest.approx(mean, abs=5e-5 if mean < 1 else 5e-3)


def test_findings_set_ours_beside_the_published(tmp_path):
    for seed, accuracy in ((0, 0.98), (1, 0.98)):
        stored(tmp_path, seed, accuracy, technique="dense", epochs=10)
    # relative losses of 5 and 15 %, 10 % and 20 %
    for seed, accuracy in ((0, 0.931), (1, 0.833)):
        stored(tmp_path, seed, accuracy, technique="magnitude", sparsity=0.9, epochs=10)
    stored(tmp_path, 0, 0.882, technique="l0", sparsity=0.9, epochs=10)
    stored(tmp_path, 0, 0.9114, technique="l0", sparsity=0.9, epochs=10, reach="controller",
           frequency=None)
    stored(tmp_path, 0, 0.9016, technique="continuous_sparsification", sparsity=0.9, epochs=10)
    stored(tmp_path, 0, 0.784, technique="lottery", sparsity=0.9, rewind_step=600, epochs=10)
    ours = findings.Ours("LeNet-300-100", tmp_path)
    assert ours.loss("magnitude", 0.9) == pytest.approx([5.0, 15.0])
    assert ours.loss("magnitude", 0.8) is None
    found = findings.markdown(tmp_path)
    (row,) = [line for line in found["techniques"].splitlines() if line.startswith("| LeNet-300")]
    assert row.split(" | ")[4] == (
        "L0, controller 7.00, CS 8.00, magnitude 10.00 ± 7.07, L0 10.00")
    # accuracies of the best runs at least so sparse, 0.7414, 0.7391 and 0.6500, over 0.7669
    (row,) = [line for line in found["techniques"].splitlines() if "published: ResNet-50" in line]
    assert row.split(" | ")[4].startswith("VD 3.32, magnitude 3.62, random 15.23")
    assert "lottery, rewind step 600 20.00" in found["second lives"]
    assert "| LeNet-300-100 | magnitude, uniform | 0.500 | 0.250 |" in found["places"]


def test_findings_are_of_the_runs_of_all_places(tmp_path):
    """A seed on each of two backends, each beside its own dense run: 5 and 10 %."""
    for seed, (backend, dense, accuracy) in enumerate((("jax", 0.98, 0.931),
                                                       ("tensorflow", 0.90, 0.81))):
        stored(tmp_path, 2 * seed, dense, technique="dense", backend=backend, epochs=10)
        stored(tmp_path, 2 * seed + 1, accuracy, technique="magnitude", sparsity=0.9,
               backend=backend, epochs=10)
    ours = findings.Ours("LeNet-300-100", tmp_path)
    assert sorted(ours.loss("magnitude", 0.9)) == pytest.approx([5.0, 10.0])


def test_a_headline_is_of_one_network_and_of_the_nearest_sparsity(tmp_path):
    for model, sparsity in (("lenet300", 0.9), ("lenet5", 0.95)):
        stored(tmp_path, 0, 0.98, technique="dense", epochs=10, model=model)
        stored(tmp_path, 1, 0.931, technique="magnitude", sparsity=sparsity, epochs=10, model=model)
    stored(tmp_path, 2, 0.97, technique="l0", sparsity=0.9, epochs=10, model="lenet5")
    stored(tmp_path, 3, 0.97, technique="l0", sparsity=0.95, epochs=10, model="lenet5")
    headlines = list(findings.headlines(NAME, tmp_path))
    assert [what for what, *_ in headlines] == ["techniques at 0.9, LeNet-300-100",
                                                "techniques at 0.95, LeNet-5-Caffe"]
    for (*_, ours, words, used), model in zip(headlines, ("lenet300", "lenet5")):
        assert ours.endswith("magnitude 5.00")
        assert words == (() if model == "lenet300" else ("model=lenet5",))
        assert {record["configuration"]["model"] for record in used} == {model}


def test_other_sizes_are_other_networks(tmp_path):
    stored(tmp_path, 0, 0.8, technique="dense", epochs=10)
    stored(tmp_path, 1, 0.7, technique="magnitude", sparsity=0.9, epochs=10)
    stored(tmp_path, 2, 0.9, technique="dense", epochs=10, filters=16)
    (tmp_path / NAME).rename(tmp_path / "sos_resnet20_cifar")
    for path in tmp_path.glob("*/*/record.json"):
        record = json.loads(path.read_text())
        del record["configuration"]["model"]
        path.write_text(json.dumps(record))
    ours = findings.Ours("ResNet-20 of 8 filters", tmp_path)
    assert sorted(record["seed"] for record in ours.records) == [0, 1]


def test_seconds_of_the_overview_are_those_of_its_command(tmp_path):
    """10 + 2 seed: of the dense run and of the one under magnitude, not of one that no grid has."""
    stored(tmp_path, 0, 0.98, technique="dense", epochs=10)
    stored(tmp_path, 0, 0.931, technique="magnitude", sparsity=0.9, epochs=10)
    stored(tmp_path, 0, 0.94, technique="l0", sparsity=0.9, epochs=10, reach="controller")
    (row,) = [line for line in readme.overview(tmp_path).splitlines() if NAME in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[5].endswith("(2 of its 69)") and cells[6] == "20"


def test_accelerators_are_compared_apart():
    assert machine.place({"backend": "jax", "devices": ["cpu: cpu"]}) == "jax"
    assert machine.place({"backend": "tensorflow", "devices": ["cpu: host", "gpu: X"]}) == (
        "tensorflow, gpu")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux begins a peak anew")
def test_the_peak_of_memory_is_that_of_a_run():
    held = np.ones(2 ** 25)  # 256 MiB
    machine.forget_peak()
    before = machine.peak_memory()["process"]
    del held
    machine.forget_peak()
    after = machine.peak_memory()["process"]
    assert before - after > 2e8
    held = np.ones(2 ** 25)
    assert machine.peak_memory()["process"] - after > 2e8


# ---- ResNet-20


@pytest.mark.slow
def test_the_narrow_resnet_has_the_same_techniques(tmp_path):
    # A process of its own without oneDNN: TensorFlow 2.21's has crashed in convolutions of few
    # channels, with 2 filters under AVX2 too.
    environment = {k: v for k, v in os.environ.items() if k != "ONEDNN_MAX_CPU_ISA"}
    done = subprocess.run(
        [sys.executable, "-m", "recipes", "run", "sos_resnet20_cifar", "data=digits", "batch=479",
         "epochs=2", "depth=8", "filters=2", "distribution=extended", "sparsity=0.75",
         "tensorboard=no", f"runs_dir={tmp_path}"], cwd=ROOT, capture_output=True, text=True,
        timeout=300, env=environment | {"KERAS_BACKEND": keras.config.backend(),
                                        "TF_ENABLE_ONEDNN_OPTS": "0"})
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*/*/record.json")
    record = json.loads(path.read_text())
    assert record["where"]["environment"].get("ONEDNN_MAX_CPU_ISA") == (
        "AVX2" if keras.config.backend() == "tensorflow" else None)
    kernels = record["report"]["kernels"]
    # stem 3 x 3 x 3 x 2 = 54 weights stay; classes 8 x 10 lose 0.75; together 0.75
    assert [kernels[i]["name"] for i in (0, -1)] == ["stem/kernel", "classes/kernel"]
    assert (kernels[0]["size"], kernels[0]["zeros"], kernels[-1]["zeros"]) == (54, 0, 60)
    size, zeros = (sum(kernel[key] for kernel in kernels) for key in ("size", "zeros"))
    assert zeros == pytest.approx(0.75 * size, abs=len(kernels) / 2)  # each count is rounded


def test_augmentation_moves_and_mirrors():
    """Every result is a window of the padded image or of its mirror image."""
    images = np.arange(1.0, 1 + 2 * 6 * 6 * 1).reshape(2, 6, 6, 1)
    moved = sos_resnet20_cifar.flipped_and_moved(images, np.random.default_rng(0))
    for before, after in zip(images, moved, strict=True):
        windows = [np.pad(image, ((4, 4), (4, 4), (0, 0)))[i:i + 6, j:j + 6]
                   for image in (before, before[:, ::-1]) for i in range(9) for j in range(9)]
        assert any(np.array_equal(after, window) for window in windows)
    again = sos_resnet20_cifar.flipped_and_moved(images, np.random.default_rng(0))
    assert np.array_equal(moved, again)


# ---- data


def test_data_from_an_npz(tmp_path):
    images = np.arange(5 * 28 * 28, dtype="uint8").reshape(5, 28, 28)
    classes = np.arange(5, dtype="uint8")
    np.savez(tmp_path / "mnist.npz", x_train=images, y_train=classes, x_test=images[:2],
             y_test=classes[:2])
    (x, y), (x_test, y_test) = arrays.load("mnist", tmp_path)
    assert x.shape == (5, 28, 28, 1) and x.dtype == "float32" and y.dtype == "int32"
    assert x[0, 0, 3, 0] == np.float32(3) / 255 and y_test.tolist() == [0, 1]
    np.savez(tmp_path / "mnist.npz", x_train=images)
    with pytest.raises(ValueError, match="has no y_train, x_test, y_test"):
        arrays.load("mnist", tmp_path)


def test_a_damaged_npz_is_told_with_the_way_out(tmp_path):
    images, path = np.zeros((5, 28, 28), "uint8"), tmp_path / "mnist.npz"
    np.savez(path, x_train=images, y_train=np.zeros(4), x_test=images, y_test=np.zeros(5))
    with pytest.raises(ValueError, match="5 images in x_train and 4 classes in y_train"):
        arrays.load("mnist", path)
    whole = path.read_bytes()
    np.save(tmp_path / "images.npy", images)
    for damaged in (whole[:500], b"", b"PK", (tmp_path / "images.npy").read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is no .npz file of arrays. Make it anew: "
                                             "python -m recipes.data.arrays mnist"):
            arrays.load("mnist", path)


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(ValueError, match="There is no .*nowhere. data_dir is a folder with "
                                         "mnist.npz or of tensorflow-datasets"):
        arrays.load("mnist", tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_a_prepared_file_is_what_it_was_prepared_from(tmp_path):
    assert arrays.main(["digits", str(tmp_path)]) == 0
    for ours, theirs in zip(arrays.load("digits", tmp_path), arrays.load("digits"), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    (x, _), _ = arrays.load("digits", shape=(32, 32, 3))
    assert x.shape == (1437, 32, 32, 3) and np.array_equal(x[..., 0], x[..., 2])


WITHOUT = """
    import sys
    class Block:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in {"tensorflow", "tensorboard", "tensorflow_datasets", "sklearn",
                                      "keras_tuner", "tf_keras"}:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    sys.meta_path.insert(0, Block())
    from recipes.__main__ import main
    sys.exit(main(sys.argv[1:]))
"""


def test_runs_on_jax_with_keras_numpy_and_an_npz_alone(tmp_path):
    arrays.main(["digits", str(tmp_path)])

    def run(*words):
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(WITHOUT), "run", NAME,
             f"runs_dir={tmp_path}", *words], cwd=ROOT, capture_output=True, text=True, timeout=300,
            env={**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT)})

    done = run(*TINY, f"data_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "TensorBoard logs are not written: tensorflow is not installed" in \
        done.stdout
    (path,) = tmp_path.glob(f"{NAME}/*/record.json")
    record = json.loads(path.read_text())
    assert record["where"]["backend"] == "jax" and record["tensorboard"].startswith("not written")
    missing = run("seed=1")
    assert missing.returncode == 2
    assert "pip install tensorflow tensorflow-datasets" in missing.stderr
    assert "python -m recipes.data.arrays mnist FOLDER" in missing.stderr
    assert "data=digits" in missing.stderr


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow writes the logs")
def test_tensorboard_logs_with_hparams(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def logged(*words):
        options, configured = runner.parse(NAME, [*TINY, *words, f"runs_dir={tmp_path}"])
        record = runner.run(NAME, configured, options)
        assert record["tensorboard"] == "written"
        logs = folder_of(record, tmp_path) / "tensorboard"
        events = EventAccumulator(str(logs)).Reload()
        assert "_hparams_/session_start_info" in str(events.summary_metadata)
        return record, set(events.Tags()["tensors"]), logs

    _, tags, logs = logged()
    assert {"epoch/loss", "epoch/sparsity", "final/accuracy"} <= tags
    assert any((logs / "sparsity").iterdir())
    # A run that is only ranked has no epochs, and a controller's frequency is not known before
    _, tags, _ = logged("technique=l0", "sparsity=0.5")
    assert "final/accuracy" in tags and "epoch/loss" not in tags
    with pytest.warns(UserWarning, match="needs about 200 updates"):  # 12 steps are too few
        record, tags, _ = logged("technique=l0", "reach=controller", "sparsity=0.5")
    assert "epoch/loss" in tags and record["configuration"]["frequency"] is None
