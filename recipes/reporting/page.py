"""The report of an experiment: one HTML page with plots, table and configuration, no network."""

import base64
import io
from html import escape
from pathlib import Path

from recipes.reporting import plots, tables
from recipes.running import configuration as settings
from recipes.running import registry
from recipes.running.files import replacing

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0 2rem; font-size: 13px; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: left; }
img { max-width: 100%; }
code { font-size: 12px; }
"""


def html(name, runs_dir):
    """The page as text.

    Args:
      name: of a recipe.
      runs_dir: where its runs are.

    Raises:
      ValueError: if there is no complete run to show.
    """
    module, found = registry.load(name), tables.records(name, runs_dir)
    table = _table(*tables.rows(name, runs_dir))
    sections = [("Results", [*table, "<p>\u00b1 is the standard deviation over seeds.</p>"]),
                *_pictures(name, runs_dir),
                ("How it differs from the paper", _list(
                    said.sentence for said in module.DIFFERENCES)),
                ("Runs", _runs(found)),
                ("Settings and their defaults", [
                    *_table(["setting", "meaning"], settings.describe(module.Configuration)),
                    f"<p>{escape(settings.STAR)}</p>"])]
    body = [line for title, lines in sections for line in (f"<h2>{escape(title)}</h2>", *lines)]
    return "\n".join([
        "<!DOCTYPE html>", '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{escape(name)}</title>", f"<style>{STYLE}</style></head><body>",
        f"<h1>{escape(name)}</h1>", f"<p>{escape(registry.first_line(module))}</p>", *body,
        "</body></html>", ""])


def _pictures(name, runs_dir):
    """[(title, lines)]; a picture that the runs do not suffice for says what it needs."""
    for title, figure in (("Loss over sparsity, ours and the published", plots.loss),
                          ("Where the zeros are, from the first layer to the last", plots.layers)):
        try:
            image = io.BytesIO()
            figure(name, runs_dir).savefig(image, format="png", dpi=plots.DPI)
        except ValueError as error:
            yield title, [f"<p>{escape(str(error))}</p>"]
        else:
            data = base64.b64encode(image.getvalue()).decode()
            yield title, [f'<img alt="{escape(title)}" src="data:image/png;base64,{data}">']


def _runs(found):
    """Where and with what the runs were made, and the command of each."""
    where = {", ".join([record["where"]["backend"], *(
        f"{package} {number}" for package, number in record["versions"].items() if number)])
        for record in found}
    rows = [[f"<code>{escape(record['command'])}</code>", record["digest"],
             f"{record['seconds']:.0f}"] for record in sorted(found, key=lambda r: r["command"])]
    head = ("<tr><th>command</th><th>hash</th><th>seconds of all, with what it needed</th></tr>")
    return [*_list(sorted(where)), "<table>", head,
            *("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows),
            "</table>"]


def _list(sentences):
    return ["<ul>", *(f"<li>{escape(sentence)}</li>" for sentence in sentences), "</ul>"]


def _table(columns, rows):
    def line(cells, tag):
        return "<tr>" + "".join(f"<{tag}>{escape(str(c))}</{tag}>" for c in cells) + "</tr>"

    return ["<table>", line(columns, "th"), *(line(row, "td") for row in rows), "</table>"]


def show(name, words):
    """Writes the page, whole or not at all, and says where it is."""
    options = settings.options(words, plots.OPTIONS)
    path = Path(options["out"] or Path(options["runs_dir"]) / name / "report.html")
    text = html(name, options["runs_dir"])
    with replacing(path) as new:
        Path(new).write_text(text, encoding="utf-8")
    print(f"Written: {path}")
