"""A report as one HTML page: no script, no network, a bar per file and per layer."""

from html import escape

from tflite_export import names

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
  color: #222; background: #fff; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 2rem; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: left;
  vertical-align: top; }
li { overflow-wrap: anywhere; }
td:first-child { min-width: 14rem; overflow-wrap: anywhere; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { position: relative; width: 10rem; height: 1.1rem; background: #e4e7ec; }
.bar div { position: absolute; left: 0; top: 0; bottom: 0; background: #3366cc; }
.bar .bound { background: none; border-right: 2px solid #b00020; }
.why { color: #666; font-size: 13px; }
"""


def html(report):
    """The page as text."""
    greatest = max(size.bytes for size in report.sizes)
    files = [[escape(size.file), f"{size.bytes:,}", f"{size.zipped:,}",
              _bar(size.bytes / greatest)] for size in report.sizes]
    layers = [[_layer(row), escape("x".join(map(str, row.shape))), escape(row.dtype),
               escape(row.encoding), f"{row.sparsity:.4f}", f"{row.bytes_dense:,}",
               f"{row.bytes:,}", f"{row.lower_bound:,}",
               _bar(row.bytes / row.bytes_dense, row.lower_bound / row.bytes_dense),
               "sparse" if row.runs_sparse else "dense"] for row in report.layers]
    runs = [[escape(o.kernels), "-" if o.difference is None else f"{o.difference:.1e}",
             escape(o.failure or "")] for o in report.trial]
    covered = [[escape(c.generation), escape(c.verdict), escape(c.why)] for c in report.covered]
    title = escape(f"Exported file, made from {report.source}" if report.source else
                   "Exported file")
    turned = ([f"The app has to turn the inputs {', '.join(report.turned_inputs)} by 180 degrees."]
              if report.turned_inputs else [])
    sentences = [f"This file is {report.reason}.", *turned, *report.advice,
                 f"Constants that are no weights take {report.other_constants:,} bytes; the graph, "
                 f"names and scales {report.graph_bytes:,}.",
                 f"Multiply-adds: {report.multiply_adds:,}; without the zeros that sparse kernels "
                 f"leave out: {report.expected_multiply_adds:,}.",
                 f"Greatest difference of an output from the model's: {report.said_difference}."]
    return "\n".join([
        "<!DOCTYPE html>", '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{title}</title>", f"<style>{STYLE}</style></head><body>",
        f"<h1>{title}</h1>", *_list(sentences),
        *([f"<details><summary>What was done to the graph ({len(report.notes)})</summary>",
           *_list(map(names.short_in, report.notes)), "</details>"] if report.notes else []),
        "<h2>Files</h2>", *_table(["file", "bytes", "zipped", ""], files),
        "<h2>Layers</h2>",
        "<p>A bar is the stored size beside the dense one in the same dtype; the line is the least "
        "that any encoding without blocks could take.</p>",
        *_table(["weight", "shape", "stored as", "encoding", "zeros", "dense", "bytes", "least", "",
                 "runs"], layers),
        *(["<h2>Beside its dense twin</h2>",
           *_table(["kernels", "difference", ""], runs)] if runs else []),
        *(["<h2>Runtimes</h2>", *_table(["release", "runs", ""], covered)] if covered else []),
        "</body></html>", ""])


def _layer(row):
    change = f"; to change it: {row.change}" if row.change and not row.runs_sparse else ""
    why = escape(f"{row.operator}: {row.why}{change}")
    return (f'<span title="{escape(row.name)}">{escape(names.short(row.name))}</span>'
            f'<div class="why">{why}</div>')


def _list(sentences):
    return ["<ul>", *(f"<li>{escape(sentence)}</li>" for sentence in sentences), "</ul>"]


def _bar(share, bound=None):
    mark = "" if bound is None else f'<div class="bound" style="width:{_percent(bound)}"></div>'
    return f'<div class="bar"><div style="width:{_percent(share)}"></div>{mark}</div>'


def _percent(share):
    return f"{100 * min(max(share, 0), 1):.1f}%"


def _table(heads, rows):
    yield "<table><tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"
    for row in rows:
        yield "<tr>" + "".join(
            f'<td class="number">{cell}</td>' if cell[:1].isdigit() and "x" not in cell
            else f"<td>{cell}</td>" for cell in row) + "</tr>"
    yield "</table>"
