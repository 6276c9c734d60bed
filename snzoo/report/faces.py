"""The report of an evaluation on pairs of faces: the ROC curves and the figures."""

from __future__ import annotations

from snzoo.evaluation.face_results import FaceResults
from snzoo.faces.tables import Table, tabulate_verification
from snzoo.report.markup import (
    breakable,
    count,
    duration,
    escape,
    facts,
    make_page,
    scrolling,
)
from snzoo.report.roc import roc_chart


def make_face_report(results: FaceResults) -> str:
    """Return the report as one HTML document that needs no other file."""
    models, data, run = results.models, results.data, results.run
    title = models[0].name if len(models) == 1 else f"{len(models)} models"
    title += f" on {count(data.pairs, 'pair', 'pairs')} of faces"
    about = [
        ("Pairs", f"{data.pairs:,} of {data.photos:,} photos ({escape(data.name)})"),
        ("Path", escape(data.path)),
        ("Device", escape(run.device)),
        ("Time", duration(run.seconds)),
        ("Versions", escape(", ".join(f"{k} {v}" for k, v in results.versions.items()))),
    ]
    figures = results.figures()
    table = scrolling(_table(tabulate_verification(figures)), label="Figures of verification")
    curves = roc_chart([(name, found.roc) for name, found in figures.items()])
    body = (
        f"{facts(about)}"
        f'<section id="roc">\n<h2>ROC</h2>\n{curves}</section>\n'
        f'<section id="figures">\n<h2>Figures</h2>\n{table}{_notes(results)}</section>\n'
    )
    footer = "Made by snzoo report. Figures are rounded; the JSON file of snzoo eval is exact."
    return make_page(title, body, footer=footer)


def _table(table: Table) -> str:
    head, *rows = table
    first = "".join(f'<th scope="col">{breakable(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>\n"
        for name, *cells in rows
    )
    return f'<table class="runs"><thead><tr>{first}</tr></thead>\n<tbody>\n{body}</tbody></table>'


def _notes(results: FaceResults) -> str:
    notes = [
        "TAR and FAR are the shares of genuine and of impostor pairs that are accepted. The "
        "threshold is the largest one whose FAR is at most the given one. The 95 % intervals "
        "(Wilson) take it as given.",
    ]
    if results.data.accuracy_pairs < results.data.pairs:
        notes.append(
            f"The accuracy is that of {results.data.accuracy_pairs:,} pairs, half of them genuine."
        )
    return f'<p class="note">{" ".join(notes)}</p>\n'
