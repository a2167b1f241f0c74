"""The report: figures that can be counted by hand, as a table, JSON and a page."""

import io
import json
import zipfile
from html.parser import HTMLParser

import numpy as np
import pytest
from arm.builder import Builder
from exports import INPUTS, conv, dense, dense_file, recurrent, wide

import tflite_export
from tflite_export import (
    advice,
    encode,
    flatbuffer,
    layers,
    loops,
    machine,
    names,
    sizes,
    store,
)
from tflite_export.__main__ import main
from tflite_export.layers import LayerReport
from tflite_export.page import html


@pytest.fixture(scope="module")
def exported():
    return tflite_export.convert(dense_file(dense))


def test_layers_by_hand(exported):
    """64 x 128 and 128 x 10 weights, a tenth of each left."""
    first, second = exported.report.layers
    assert (first.shape, second.shape) == ((128, 64), (10, 128))
    for row in (first, second):
        size = row.shape[0] * row.shape[1]
        kept = size - round(0.9 * size)
        assert row.operator == "FULLY_CONNECTED" and row.dtype == "float32"
        assert row.sparsity == 1 - kept / size and row.bytes_dense == 4 * size
        assert row.lower_bound == 5 * kept  # a value and an index of one byte
        assert row.lower_bound < row.bytes <= 1.1 * row.lower_bound
        assert row.multiply_adds == row.expected_multiply_adds == size
        assert not row.runs_sparse and "its zeros are not in blocks of 1x4" in row.why
        assert row.change == "prune it with tf_sparsity.MagnitudePruning(pattern='1x4')"


def test_multiply_adds_of_convolutions_by_hand():
    """Pictures of 8 x 8: a 3x3 convolution 3 -> 16, a depthwise one to 6 x 6, a 1x1, a Dense."""
    work = {row.shape: row.multiply_adds for row in layers.layers(dense_file(conv))}
    assert work == {(16, 3, 3, 3): 64 * 16 * 27, (1, 3, 3, 16): 36 * 9 * 16,
                    (32, 1, 1, 16): 36 * 32 * 16, (4, 32): 128}


def test_why_a_weight_is_dense():
    def why(sparse, sparsity):
        rows = layers.layers(dense_file(dense, sparsity), store.Policy(sparse))
        return [(row.why, row.change) for row in rows]

    assert why("auto", 0.0) == why(False, 0.0) == [("it has no zeros", "prune it")] * 2
    assert why(False, 0.9) == [("as asked", "sparse='auto'")] * 2
    assert why("auto", 0.1) == [
        ("it would not be smaller with the places of its zeros", "prune more of it")] * 2
    assert {text for text, _ in why("speed", 0.9)} == {"its zeros are not in blocks of 1x4"}


def test_sizes_of_other_dtypes_are_those_of_the_converter():
    """The computed sizes are within 3 % of real files, raw; a file's own is exact."""
    computed = {size.file.split(",")[0]: size for size in sizes.dense_sizes(dense_file(wide))}
    assert computed["float32"].bytes == len(dense_file(wide))
    pytest.importorskip("ai_edge_quantizer")
    for mode, name in (("float16", "float16"), ("dynamic", "dynamic range")):
        real = tflite_export.convert(dense_file(wide), quantize=mode, sparse=False).tflite
        assert computed[name].bytes == pytest.approx(len(real), rel=0.03)
    assert all(size.zipped < size.bytes for size in computed.values())


def test_zipped_is_what_a_zip_archive_takes_for_it(exported):
    """At the level that zip tools have by default; zlib's own frame is 6 bytes."""
    with zipfile.ZipFile(io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.tflite", exported.tflite)
        (entry,) = archive.infolist()
    assert exported.report.zipped == entry.compress_size + 6


@pytest.mark.parametrize("mode", ["dynamic", "int8", "float16", "int8_weights"])
def test_no_size_is_estimated_beside_the_real_one(mode):
    data = INPUTS[wide]() if mode == "int8" else None
    report = tflite_export.convert(wide(), quantize=mode, representative_data=data,
                                   sparse=False).report
    files = [size.file for size in report.sizes]
    # "dynamic, dense" and "dynamic range, dense (computed)"
    assert sum(file.startswith(mode) for file in files) == (mode != "int8_weights"), files
    assert "float32, dense" in files and len(files) == 5


def test_the_table_has_every_figure(exported):
    report, text = exported.report, str(exported.report)
    assert report.bytes == len(exported.tflite) and f"{report.bytes:,}" in text
    assert f"{report.bytes_dense:,}" in text and f"{report.zipped_dense:,}" in text
    assert f"this file: {report.reason}" in text
    for row in report.layers:
        assert names.short(row.name) in text and f"{row.bytes:,}" in text
    for kernels in ("XNNPACK", "built-in", "reference", "CompiledModel"):
        assert f"beside its dense twin, {kernels}: 0.0e+00" in text
    assert "\nall releases: dense, " in text and "litert 1.2" not in text
    assert [one.generation for one in report.covered] == [
        "tflite-runtime 2.14", "litert 1.2", "litert 1.4-2.1", "litert 2.2+"]


def test_releases_that_do_the_same_share_a_line():
    old, new = encode.Covered("1", "dense", "why"), encode.Covered("2", "dense", "why")
    assert [str(one) for one in encode.joined([old])] == ["1: dense, why"]
    assert [str(one) for one in encode.joined([old, new])] == ["all releases: dense, why"]
    other = encode.Covered("3", "sparse", "")
    assert [str(one) for one in encode.joined([old, other, new])] == ["1, 2: dense, why",
                                                                      "3: sparse"]
    assert encode.joined([]) == ()


def test_the_result_is_shown_without_its_bytes(exported):
    assert repr(exported) == (
        f"Exported({len(exported.tflite):,} bytes: {exported.report.reason})")
    assert repr(exported).isascii() and len(repr(exported)) < 100


def test_other_constants_by_hand():
    """A summand, the shape of a reshape, and a bias; the biases of the other file are zero, and
    left out by the converter."""
    b = Builder()
    x = b.reshape(b.binary("ADD", b.input(1, 4, 2), b.constant(np.ones(2, np.float32))), 1, 8)
    report = tflite_export.convert(b.finish(b.dense(x, 3))).report
    assert report.other_constants == 4 * 2 + 4 * 2 + 4 * 3 == report.to_dict()["other_constants"]
    assert sum(row.bytes for row in report.layers) == 4 * 3 * 8
    (line,) = [line for line in str(report).splitlines() if line.startswith("other constants")]
    assert line.split() == ["other", "constants", "28", "28"]
    assert sizes.other_constants(dense_file(dense)) == 0


def figures(text):
    """The column "bytes" of the table of weights."""
    head, *lines = text[text.index("\nweight ") + 1:].splitlines()
    end = head.index(" bytes ") + len(" bytes")
    last = [line.startswith("graph, names, scales") for line in lines].index(True)
    return [int(line[:end].split()[-1].replace(",", "")) for line in lines[:last + 1]]


def test_the_table_adds_up_to_the_file(exported, tmp_path, capsys):
    assert sum(figures(str(exported.report))) == len(exported.tflite)
    exported.save(tmp_path / "x.tflite")
    assert main(["inspect", str(tmp_path / "x.tflite")]) == 0
    assert sum(figures(capsys.readouterr().out)) == len(exported.tflite)


def test_json_has_every_figure(exported):
    report = exported.report
    figures = json.loads(json.dumps(report.to_dict()))
    assert figures["layers"][0]["shape"] == [128, 64] and figures["difference"] < 1e-5
    assert figures["sizes"][0]["bytes"] == report.bytes and figures["is_sparse"] is True
    assert figures["multiply_adds"] == 64 * 128 + 128 * 10 == figures["expected_multiply_adds"]
    assert [o["kernels"] for o in figures["trial"]][0] == "XNNPACK"
    assert figures["source"] == "the .tflite file"


class Page(HTMLParser):
    """Counts what a page holds, and that every element is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.found, self.widths, self.text = [], [], [], ""

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.found.append(tag)
        if tag != "meta":
            self.open.append(tag)
        if "style" in attributes:
            self.widths.append(attributes["style"])
        assert "src" not in attributes and "href" not in attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_needs_nothing_else(exported, tmp_path):
    path = tmp_path / "report.html"
    assert exported.report.save_html(path) == str(path)
    page = Page()
    page.feed(path.read_text())
    assert page.open == [] and "script" not in page.found and "link" not in page.found
    # a bar for each of 5 files, two for each of 2 layers
    assert len(page.widths) == len(exported.report.sizes) + 2 * 2
    row = exported.report.layers[0]
    assert f"width:{100 * row.bytes / row.bytes_dense:.1f}%" in page.widths
    assert "no weights take 0 bytes" in page.text
    assert f"the graph, names and scales {exported.report.graph_bytes:,}." in page.text
    assert names.short(row.name) in page.text and "its zeros are not in blocks" in page.text
    with pytest.raises(FileExistsError, match="overwrite=True"):
        exported.report.save_html(path)


def test_the_page_escapes_names(exported, tmp_path):
    row = exported.report.layers[0]._replace(name="<b>&")
    report = exported.report._replace(layers=(row,))
    text = (tmp_path / "x.html")
    report.save_html(text)
    assert "&lt;b&gt;&amp;" in text.read_text() and "<b>" not in text.read_text()


def test_the_page_begins_with_what_one_wants_to_know(exported):
    """What was done to the graph is folded, with short names; what the app must do is not."""
    report = exported.report._replace(
        source="model 'm'", turned_inputs=("x",), advice=("Beware.",),
        notes=("CONV_2D 'a/b;c/d': padded", "the app has to turn the inputs ['x'] by 180 degrees"))
    page = Page()
    page.feed(text := html(report))
    assert "<h1>Exported file, made from model &#x27;m&#x27;</h1>" in text
    in_order = [text.index(piece) for piece in (
        "This file is ", "The app has to turn the inputs x by 180", "Beware.", "Multiply-adds",
        "<details><summary>What was done to the graph (2)</summary>",
        "CONV_2D &#x27;c/d&#x27;: padded", "</details>", "<h2>Files")]
    assert in_order == sorted(in_order) and "a/b" not in text
    plain = html(exported.report._replace(source=""))
    assert "<h1>Exported file</h1>" in plain and "<details>" not in plain


def test_the_page_has_the_dtype_and_the_whole_name_of_a_weight(exported):
    row = exported.report.layers[0]._replace(name="first;" + "x" * 60, dtype="int8")
    text = html(exported.report._replace(layers=(row,)))
    assert "<th>stored as</th>" in text and "<td>int8</td>" in text
    assert f'<span title="first;{"x" * 60}">...{"x" * 45}</span>' in text


# ---- what to expect


def layer(operator, runs, work, left, dtype="float32"):
    return LayerReport("w", operator, (8, 8), dtype, dtype, 0.9, "CSR" if runs else "dense", 10,
                       100, 10, runs, "", None, work, left)


def said(rows, size=100, float_bytes=1000):
    return " ".join(advice.advice(rows, size, float_bytes))


def test_advice_by_what_is_left():
    convolution = layer("CONV_2D", True, 1000, 300)
    text = said([convolution])
    assert "On x86 with AVX the file is as fast as a dense one" in text
    assert "dense int8 is likely to be faster" in text and "30% of them are left" in text
    # 30 % are left: more than the quarter of half the channels, in any dtype
    assert "would be faster in every runtime, with a quarter of the multiply-adds. Wh" in text
    # 90 of the 100 bytes are no weights and stay; a sixteenth of the other 110 float32 bytes is 6
    text = said([convolution], float_bytes=200)
    assert "a quarter of the multiply-adds, and smaller, about 96 bytes" in text
    few = said([layer("CONV_2D", True, 1000, 50)], size=50)
    assert "dense int8" not in few and "Half of the channels" not in few  # a twentieth is left
    # 10 %: fewer than a quarter, more than the sixteenth that a quarter in int8 costs
    assert "would be faster on cores with dot-product instructions" in said(
        [layer("CONV_2D", True, 1000, 100)], size=50)
    assert said([layer("CONV_2D", False, 1000, 1000)]) == ""  # nothing sparse, nothing to say


def test_advice_for_a_kernel_that_computes_in_int8():
    """At 10 % left it does fewer multiplications than half of the channels, in the same dtype."""
    text = said([layer("FULLY_CONNECTED", True, 1000, 100, "int8")], size=50)
    assert "compare with the dense file" in text and "Half of the channels" not in text
    text = said([layer("FULLY_CONNECTED", True, 1000, 300, "int8")], size=50)
    assert "Half of the channels" in text and "dense int8 is likely" not in text


def test_no_speed_is_promised_where_nothing_runs_sparse():
    row = layer("CONV_2D", False, 1000, 1000)._replace(encoding="CSR")
    assert said([row]).startswith("No kernel runs this file sparse")


def test_the_machine_is_read(monkeypatch):
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    assert machine.runs_sparse_convolutions() is True
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    for flags, runs in (({"sse", "avx"}, False), ({"sse"}, True), (None, None)):
        monkeypatch.setattr(machine, "_flags", lambda flags=flags: flags)
        assert machine.runs_sparse_convolutions() is runs


def test_names_are_short():
    assert names.short("a/b;c/d;") == "c/d" and names.short("a;b;/turned") == "b/turned"
    assert names.short("") == "" and names.short(";") == ";"
    assert names.short("x" * 60) == "..." + "x" * 45
    assert names.short_in("CONV_2D 'a;b': no") == "CONV_2D 'b': no"


def test_a_loop_is_counted_as_often_as_it_turns():
    """5 steps of an LSTM of 8 units on 8 inputs, in both directions."""
    rows = layers.layers(dense_file(recurrent))
    assert sorted(row.multiply_adds for row in rows) == [3 * 16] + [5 * 32 * 8] * 4
    assert np.all([row.operator == "FULLY_CONNECTED" for row in rows])


def test_a_loop_that_cannot_be_counted_turns_once():
    """Damaged files: an ADD without outputs, and a loop that is its own body."""
    whole, silent, endless = (flatbuffer.read(dense_file(recurrent)) for _ in range(3))
    (forth, back) = (op for op in whole.subgraphs[0].operators
                     if flatbuffer.operator(whole, op) == "WHILE")
    bodies = [op.builtinOptions.bodySubgraphIndex for op in (forth, back)]
    assert [loops.runs(whole)[body] for body in bodies] == [5, 5]
    for op in silent.subgraphs[bodies[0]].operators:
        if flatbuffer.operator(silent, op) == "ADD":
            op.outputs = []
    assert [loops.runs(silent)[body] for body in bodies] == [1, 5]
    for op in endless.subgraphs[0].operators:
        if flatbuffer.operator(endless, op) == "WHILE":
            op.builtinOptions.bodySubgraphIndex = 0
    assert loops.runs(endless)[0] >= 1
