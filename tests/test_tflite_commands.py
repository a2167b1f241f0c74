"""The command line of tflite_export: what it writes, what it says, and its exit status."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from exports import prune
from keras import layers

import tf_sparsity as ts
import tflite_export
from tflite_export import __main__ as command_line
from tflite_export import encoding, files, flatbuffer, machine, names, store, weights
from tflite_export.benchmark import Benchmark

ROOT = Path(__file__).parent.parent


def sparse_model():
    model = keras.Sequential([keras.Input((64,)), layers.Dense(128, "relu"), layers.Dense(10)])
    model = ts.sparsify(model, ts.MagnitudePruning(ts.ConstantSparsity(0.9, 0)))
    ts.update(model)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sparsified model in model.keras, and its dense and sparse files."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("files")
    model = sparse_model()
    model.save(folder / "model.keras")
    dense = tflite_export.convert(model, sparse=False)
    dense.save(folder / "dense.tflite")
    tflite_export.convert(dense.tflite).save(folder / "sparse.tflite")
    return folder


def run(*arguments):
    return command_line.main([str(argument) for argument in arguments])


def test_a_process_of_its_own_prints_the_report_and_no_noise(folder, tmp_path):
    """The model is sparsified still: the command strips it."""
    out = tmp_path / "out.tflite"
    done = subprocess.run(
        [sys.executable, "-m", "tflite_export", str(folder / "model.keras"), "-o", str(out)],
        capture_output=True, text=True, timeout=300, cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"},
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert out.read_bytes() == (folder / "sparse.tflite").read_bytes()
    report = tflite_export.convert((folder / "dense.tflite").read_bytes()).report
    assert done.stdout.startswith(f"{out}\n") and f"this file: {report.reason}" in done.stdout


def test_a_tflite_file_is_converted_with_all_options(folder, tmp_path, capsys):
    out, page, data = (tmp_path / name for name in ("o.tflite", "o.html", "o.json"))
    options = ["-o", out, "--html", page, "--json", data, "--quantize", "int8_weights",
               "--sparse", "size", "--runtime", "litert>=2.2"]
    assert run(folder / "dense.tflite", *options) == 0
    exported = tflite_export.convert(folder / "dense.tflite", quantize="int8_weights",
                                     sparse="size", runtime="litert>=2.2")
    assert out.read_bytes() == exported.tflite
    assert capsys.readouterr().out == f"{out}\n{exported.report}\n"
    assert json.loads(data.read_text()) == json.loads(json.dumps(exported.report.to_dict()))
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert run(folder / "dense.tflite", *options) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert run(folder / "dense.tflite", "-o", out, "--overwrite", "--sparse", "off") == 0
    assert out.read_bytes() == (folder / "dense.tflite").read_bytes()


def test_representative_data_from_a_file(folder, tmp_path):
    pytest.importorskip("ai_edge_quantizer")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((20, 64), "float32"))
    out = tmp_path / "o.tflite"
    arguments = [folder / "dense.tflite", "-o", out, "--quantize", "int8"]
    assert run(*arguments, "--representative-data", tmp_path / "x.npy") == 0
    dtypes = {row.value.dtype.name for row in weights.find(flatbuffer.read(out.read_bytes()))}
    assert dtypes == {"int8"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["absent.keras", "-o", "new.tflite"], "absent.keras is not there"),
        (["dense.tflite", "-o", "sparse.tflite"], "exists already.*--overwrite"),
        (["dense.tflite", "-o", "absent/new.tflite"], "folder of .* is not there"),
        (["dense.tflite", "-o", "new.tflite", "--html", "absent/x.html"], "folder of .* is not"),
        (["junk.keras", "-o", "new.tflite"], "junk.keras is not a .keras file"),
        (["junk.tflite", "-o", "new.tflite"], "Not a .tflite file: bytes 4 to 8 of junk.tflite"),
        (["cut.tflite", "-o", "new.tflite"], "cut.tflite is damaged or cut off"),
        ([".", "-o", "new.tflite"], "is a folder: give the path of a .keras or a .tflite file"),
        (["sparse.tflite", "-o", "new.tflite"], "stores 2 weights sparse already"),
        (["dense.tflite", "-o", "new.tflite", "--quantize", "int8"], "needs representative_data"),
        (["dense.tflite", "-o", "new.tflite", "--quantize", "int8", "--representative-data",
          "junk.tflite"], "junk.tflite cannot be read as an array"),
        (["dense.tflite", "-o", "new.tflite", "--quantize", "int8", "--representative-data",
          "empty.npy"], "empty.npy cannot be read as an array"),
        (["dense.tflite", "-o", "new.tflite", "--quantize", "int8", "--representative-data",
          "bad.npz"], "bad.npz cannot be read as an array"),
        (["dense.tflite", "-o", "new.tflite", "--quantize", "int8", "--representative-data",
          "model.keras"], r"model.keras cannot be read .*: metadata.json in it is no array\. Give "
                          "an .npy file of one array, or an .npz file with one for each input"),
        (["dense.tflite", "-o", "."], "is a folder"),
        (["dense.tflite", "-o", "new.tflite", "--html", "new.tflite"], "are one file"),
        (["dense.tflite", "-o", "new.tflite", "--json", "./new.tflite", "--overwrite"],
         "new.tflite and ./new.tflite are one file"),
        (["dense.tflite", "-o", "a", "--html", "b", "--json", "link/b"], "b and link/b are one"),
        (["inspect", "absent.tflite"], "absent.tflite is not there"),
        (["inspect", "junk.tflite"], "Not a .tflite file: bytes 4 to 8 of junk.tflite are"),
        (["inspect", "."], "is a folder: give the path of a .tflite file"),
        (["inspect", "model.keras"], "model.keras is a zip archive, as .keras .*convert it first"),
        (["benchmark", "dense.tflite", "--against", "junk.tflite"], "4 to 8 of junk.tflite are"),
        (["verify", "cut.tflite"], "damaged or cut off"),
        (["dense.tflite", "-o", "dense.tflite", "--overwrite"], "dense.tflite are one file"),
    ],
)
def test_failures_are_one_sentence_and_write_nothing(folder, monkeypatch, capfd, arguments,
                                                     sentence):
    (folder / "junk.keras").write_bytes(b"junk")
    (folder / "junk.tflite").write_bytes(b"the fox jumps over the lazy dog")
    (folder / "empty.npy").write_bytes(b"")
    (folder / "bad.npz").write_bytes(b"PK\x03\x04 and no more")
    (folder / "cut.tflite").write_bytes((folder / "dense.tflite").read_bytes()[:-2000])
    (folder / "link").unlink(missing_ok=True)
    (folder / "link").symlink_to(".")
    monkeypatch.chdir(folder)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert run(*arguments) == 1
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert re.search(sentence, printed.err), printed.err
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_the_file_is_written_last(folder, tmp_path, capsys):
    """A report that cannot be written, for its name is too long, leaves no .tflite file behind."""
    page = tmp_path / ("x" * 250)
    assert run(folder / "dense.tflite", "-o", tmp_path / "o.tflite", "--html", page) == 1
    assert "File name too long" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_folder_that_must_not_be_written_to_is_refused_before_the_conversion(
        folder, tmp_path, capsys, monkeypatch):
    """To root, who may run this, every folder is open."""
    monkeypatch.setattr(command_line, "convert", None)  # not reached
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    for options in (["-o", tmp_path / "o.tflite"],
                    ["-o", folder / "o.tflite", "--json", tmp_path / "o.json"]):
        assert run(folder / "dense.tflite", *options) == 1
        assert re.search(r"The folder of \S*/o\.(tflite|json) may not be written to: ",
                         capsys.readouterr().err)


def test_an_error_of_writing_names_the_path_that_was_given(folder, tmp_path, capsys):
    """Not that of the file which becomes it, when it is whole."""
    long = tmp_path / ("x" * 250)
    assert run(folder / "dense.tflite", "-o", long) == 1
    assert capsys.readouterr().err.endswith(f" File name too long: {str(long)!r}\n")
    for path in (f"{tmp_path / 'absent'}/", ""):
        with pytest.raises(IsADirectoryError, match=f"'{path}' is a folder: give the name of a"):
            files.write(path, b"")


def test_wrong_usage_is_2(folder, capsys):
    for arguments in (["model.keras"], ["inspect"], ["x", "-o", "y", "--sparse", "csr"]):
        with pytest.raises(SystemExit) as status:
            run(*arguments)
        assert status.value.code == 2
        usage = "inspect" if arguments == ["inspect"] else "MODEL"
        printed = capsys.readouterr().err
        assert f"usage: python -m tflite_export {usage}" in printed and "__main__" not in printed


@pytest.mark.parametrize("arguments", [
    ["benchmark", "dense.tflite", "--rounds", "0"],
    ["benchmark", "dense.tflite", "--threads", "-1"],
    ["x", "-o", "y", "--batch-size", "0"], ["x", "-o", "y", "--batch-size", "2x"]])
def test_numbers_below_one_are_wrong_usage(capsys, arguments):
    with pytest.raises(SystemExit) as status:
        run(*arguments)
    assert status.value.code == 2
    assert re.search("integer of at least 1; got '(0|-1|2x)'", capsys.readouterr().err)


def test_the_status_reaches_the_shell():
    command = [sys.executable, "-m", "tflite_export", "inspect", "absent.tflite"]
    assert subprocess.run(command, capture_output=True, cwd=ROOT).returncode == 1


def test_inspect_shows_every_weight(folder, capsys):
    for name in ("dense", "sparse"):
        tflite = (folder / f"{name}.tflite").read_bytes()
        assert run("inspect", folder / f"{name}.tflite") == 0
        printed = capsys.readouterr().out
        assert f"{len(tflite):,}" in printed
        for weight in weights.find(flatbuffer.read(tflite)):
            name_ = re.escape(names.short(weight.name))
            (line,) = re.findall(rf"^{name_} .*$", printed, re.MULTILINE)
            assert "x".join(map(str, weight.value.shape)) in line and f"{weight.zeros:.4f}" in line
            assert (" CSR" in line) == (name == "sparse") and line.endswith("dense")
    assert "unpacked when the file is loaded" in printed


def test_verify_says_right(folder, capsys):
    assert run("verify", folder / "sparse.tflite") == 0
    assert "right: it computes what its dense twin computes" in capsys.readouterr().out


def test_verify_says_wrong(tmp_path, capsys):
    """The hybrid kernel takes every weight for blocks of 1x16; here they are 1x4."""
    model = keras.Sequential([keras.Input((256,)), layers.Dense(32)])
    graphs = flatbuffer.read(tflite_export.convert(model, quantize="dynamic", sparse=False).tflite)
    (weight,) = weights.find(graphs)
    value = weight.value.copy()
    value[:, 16:] = 0
    encoded = encoding.encode(value, block=4)
    weight.tensor.buffer = flatbuffer.add_constant(graphs, encoded.values)
    weight.tensor.sparsity = encoded.sparsity
    weight.users[0].opcodeIndex = flatbuffer.operator_code(
        graphs, schema.BuiltinOperator.FULLY_CONNECTED, 8)
    (tmp_path / "wrong.tflite").write_bytes(flatbuffer.write(graphs))
    assert run("verify", tmp_path / "wrong.tflite") == 3
    assert "\nwrong: in LiteRT with XNNPACK kernels" in capsys.readouterr().out


def test_verify_of_a_file_for_new_releases(tmp_path, capsys):
    """Sparse float16 weights are NaN on LiteRT 1.2 to 2.1."""
    model = prune(keras.Sequential([keras.Input((256,)), layers.Dense(64)]), 0.9)
    path = tflite_export.convert(model, quantize="float16", runtime="litert>=2.2").save(
        tmp_path / "half.tflite")
    assert run("verify", path) == 3
    printed = capsys.readouterr().out
    assert "wrong: on litert 1.2, litert 1.4-2.1" in printed
    assert "\ntflite-runtime 2.14, litert 2.2+: dense, unpacked when the file is loaded" in printed
    assert re.search("^litert 1.2, litert 1.4-2.1: wrong, FULLY_CONNECTED '.*': a float16 weight "
                     "behind a DENSIFY becomes NaN", printed, re.MULTILINE)
    assert run("verify", path, "--runtime", "litert>=2.2") == 0
    assert run("inspect", path, "--runtime", "litert>=2.2") == 0
    assert "1.4-2.1" not in capsys.readouterr().out


def test_inspect_explains_by_the_releases_asked_for(folder, tmp_path, capsys):
    """A dense float16 weight: sparse ones are NaN before LiteRT 2.2 only."""
    from test_tflite_foreign import half, rewritten

    path = tmp_path / "half.tflite"
    path.write_bytes(rewritten((folder / "dense.tflite").read_bytes(), half))
    for runtime, told in (("litert", True), ("litert>=2.2", False)):
        assert run("inspect", path, "--runtime", runtime) == 0
        assert ("LiteRT before 2.2" in capsys.readouterr().out) == told


def test_warnings_reach_the_terminal(folder, tmp_path, capsys):
    assert run(folder / "dense.tflite", "-o", tmp_path / "o.tflite", "--sparse", "speed") == 0
    printed = capsys.readouterr().err
    assert printed.startswith("tflite_export: warning: Nothing in this file runs sparse: ")


def test_a_reader_that_has_enough_ends_it_silently(folder):
    """As `| head -1` does: the pipe is closed before anything is written to it."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "tflite_export", "inspect", str(folder / "sparse.tflite")],
            stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=300, cwd=ROOT)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("command", ["inspect", "verify", "benchmark"])
def test_help_of_a_subcommand_is_about_it(command, capsys):
    with pytest.raises(SystemExit) as status:
        run(command, "--help")
    printed = " ".join(capsys.readouterr().out.split())
    assert status.value.code == 0
    assert printed.startswith(f"usage: python -m tflite_export {command} [-h]")
    assert "MODEL" not in printed and printed.count("python -m") == 1
    defaults = {"benchmark": ("11", "1")}.get(command, ("litert",))
    assert re.findall(r"\(default: (.*?)\)", printed) == list(defaults)


def test_help_lists_the_subcommands_and_defaults(capsys):
    for arguments in (["--help"], ["convert", "--help"]):
        with pytest.raises(SystemExit):
            run(*arguments)
        printed = " ".join(capsys.readouterr().out.split())
        assert "python -m tflite_export inspect FILE.tflite" in printed
        assert "MODEL a .keras file, of a sparse model too, or a dense .tflite file" in printed
        assert re.findall(r"\(default: (.*?)\)", printed) == ["auto", "litert", "1"]


def test_the_app_rotates(tmp_path, capsys):
    from test_tflite_networks import mobile

    prune(mobile(), 0.9).save(tmp_path / "m.keras")
    arguments = [tmp_path / "m.keras", "-o", tmp_path / "o.tflite", "--json", tmp_path / "o.json"]
    assert run(*arguments, "--app-rotates") == 0
    assert json.loads((tmp_path / "o.json").read_text())["turned_inputs"] == ["input_0"]


def test_benchmark_takes_turns(folder, capsys):
    assert run("benchmark", folder / "sparse.tflite", "--rounds", "3") == 0
    printed = capsys.readouterr().out
    assert "median of 3 rounds in turns" in printed
    assert re.search("^against .* a run: the same file stored dense$", printed, re.MULTILINE)
    assert "convolution" not in printed  # the file has none
    ratio = float(re.search(r"^ratio +([\d.]+)", printed, re.MULTILINE)[1])
    assert ratio > 0
    arguments = ["benchmark", folder / "sparse.tflite", "--against", folder / "dense.tflite"]
    assert run(*arguments, "--rounds", "1", "--threads", "2") == 0
    printed = capsys.readouterr().out
    assert f" a run: {folder / 'dense.tflite'}\n" in printed and "2 threads" in printed


def test_what_a_benchmark_says(monkeypatch):
    monkeypatch.setattr(machine, "_flags", lambda: {"avx"})
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    six = (1.2, 1.3, 1.5, 1.5, 1.6, 1.6)
    slow = Benchmark(2e-3, 3e-3, 1.5, six, 1, "that", True)
    assert str(slow).splitlines() == [
        "file          2.000 ms a run",
        "against       3.000 ms a run: that",
        "ratio          1.50    median of 6 rounds in turns, 1.20 to 1.60; above 1 the file is "
        "faster",
        "LiteRT with XNNPACK, 1 thread",
        "this machine is x86 with AVX, where XNNPACK runs no convolution sparse"]
    # five rounds of two equal files are on one side in one of 2**4 cases
    few = str(slow._replace(ratios=six[1:])).splitlines()[2]
    assert few.endswith("1.30 to 1.60: inconclusive below 6 rounds; above 1 the file is faster")
    mixed = (0.9, 1.0, 1.1, 1.1, 1.2, 1.2)
    fast = str(Benchmark(2e-6, 3e-4, 1.1, mixed, 1, "that", False)).splitlines()
    assert fast[:2] == ["file          2.000 us a run", "against     300.000 us a run: that"]
    assert fast[2].endswith("0.90 to 1.20: no significant difference; above 1 the file is faster")
    assert len(fast) == 4


def test_wrong_on_a_phone_and_right_here(tmp_path, capsys):
    """Features leave XNNPACK's sparse part: x86 with AVX computes it right, Arm wrong."""
    from test_tflite_networks import leaking

    dense = tflite_export.convert(prune(leaking(), 0.9), sparse=False).tflite
    (tmp_path / "leak.tflite").write_bytes(store.store(dense).tflite)
    assert run("verify", tmp_path / "leak.tflite") == 3
    printed = capsys.readouterr().out
    assert "all releases: wrong, CONV_2D '" in printed and "leaks" in printed
    assert "\nwrong: on tflite-runtime 2.14, litert 1.2, litert 1.4-2.1, litert 2.2+" in printed
    assert run("inspect", tmp_path / "leak.tflite") == 0
    assert "all releases: wrong" in capsys.readouterr().out
