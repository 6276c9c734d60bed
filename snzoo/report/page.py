"""The report: measured and published figures, each model, and the settings of the run."""

from __future__ import annotations

from collections.abc import Sequence

from snzoo.evaluation.results import Accuracy, Model, Results
from snzoo.report.charts import LEGEND, Row, dot_plot
from snzoo.report.markup import (
    NBSP,
    breakable,
    count,
    duration,
    escape,
    facts,
    make_page,
    messages,
    scrolling,
)
from snzoo.report.models import model_section
from snzoo.report.thumbnails import Thumbnails


def make_report(results: Results, thumbnails: Thumbnails) -> str:
    """Return the report as one HTML document that needs no other file."""
    models = results.models
    title = models[0].name if len(models) == 1 else f"{len(models)} models"
    title += f" on {count(results.data.images, 'image', 'images')}"
    sections = [_summary(results), _accuracy(models)]
    for i, model in enumerate(models, 1):
        sections.append(model_section(model, thumbnails, anchor=f"model-{i}"))
    sections += [_run(results), _left_out(results.errors)]
    footer = "Made by snzoo report. Figures are rounded; the JSON file of snzoo eval is exact."
    return make_page(title, "".join(sections), footer=footer)


def _summary(results: Results) -> str:
    data, run = results.data, results.run
    where = "the photos bundled with snzoo" if data.path is None else data.path
    pairs = [
        ("Images", f"{escape(data.description)}<br><small>{escape(where)}</small>"),
        ("Pixels", _exactness(results)),
        ("Throughput", f"{run.images_per_second:,.1f} images/s on {escape(run.device)}"),
    ]
    if data.dataset:
        pairs.insert(1, ("Data set", escape(data.dataset)))
    if results.errors:
        link = f'<a href="#left-out">{count(len(results.errors), "image", "images")}</a>'
        pairs.append(("Left out", f"{link} that cannot be read"))
    return f'<p class="lead">{_verdict(results.models)}</p>\n{facts(pairs)}'


def _exactness(results: Results) -> str:
    if results.pixels.exact:
        return "exactly those of the reference transform"
    return '<strong class="differs">approximately</strong> those of the reference transform'


def _verdict(models: Sequence[Model]) -> str:
    """Return sentences that say whether the published figures were reproduced."""
    compared = [model for model in models if _published(model)]
    same = [model for model in compared if model.same_images]
    others = [model for model in compared if not model.same_images]
    sentences = []
    if same:
        sentences.append(f"{_count_agreeing(same)} the accuracy published for the same images.")
        sentences += [
            f"<strong>{escape(model.name)}</strong> differs in {_differing(model)}."
            for model in same
            if _differing(model)
        ]
    if others:
        sets = "; ".join(
            sorted({escape(model.published_on) for model in others if model.published_on})
        )
        sentences.append(f"Other figures were published for other images ({sets}) and may differ.")
        sentences.append(_inside(others))
    if nothing := len(models) - len(compared):
        sentences.append(f"No accuracy was published for {count(nothing, 'model', 'models')}.")
    return " ".join(sentences)


def _count_agreeing(models: Sequence[Model]) -> str:
    agreeing = sum(not _differing(model) for model in models)
    if len(models) == 1:
        return f"The model {'reproduces' if agreeing else 'does not reproduce'}"
    return f"{agreeing} of {len(models)} models reproduce"


def _inside(models: Sequence[Model]) -> str:
    if len(models) > 1:
        inside = sum(not _differing(model) for model in models)
        words = f"They lie inside the 95{NBSP}% intervals"
        return f"{words} of {inside} of {len(models)} models."
    outside = _differing(models[0])
    if not outside:
        return f"They lie inside the 95{NBSP}% interval."
    verb = "lie" if " and " in outside else "lies"
    return f"The published {outside} {verb} outside the 95{NBSP}% interval."


def _published(model: Model) -> bool:
    return model.top1.published is not None or model.top5.published is not None


def _differing(model: Model) -> str:
    pairs = (("top-1", model.top1), ("top-5", model.top5))
    return " and ".join(title for title, accuracy in pairs if accuracy.agrees is False)


def _word(accuracy: Accuracy, model: Model) -> str:
    """Return the verdict on one figure, colored only if the images are the same."""
    if accuracy.agrees is None:
        return ""
    if model.same_images:
        word = "agrees" if accuracy.agrees else "differs"
        return f'<span class="{word}">{word}</span>'
    return f"<span>{'inside' if accuracy.agrees else 'outside'}</span>"


def _accuracy(models: Sequence[Model]) -> str:
    charts = "".join(
        f"<figure><figcaption>{title}</figcaption>{_plot(models, which, title)}</figure>\n"
        for which, title in (("top1", "Top-1"), ("top5", "Top-5"))
    )
    table = scrolling(_table(models), label="Measured and published accuracy")
    return (
        '<section id="accuracy">\n<h2>Measured and published accuracy</h2>\n'
        f'{LEGEND}\n<div class="columns">\n{charts}</div>\n{table}{_explain(models)}</section>\n'
    )


def _plot(models: Sequence[Model], which: str, title: str) -> str:
    rows = []
    for model in models:
        a: Accuracy = getattr(model, which)
        rows.append(Row(model.name, a.percent, *a.interval95, a.published, _word(a, model)))
    return dot_plot(rows, label=f"{title} accuracy of each model, as in the table below.")


def _table(models: Sequence[Model]) -> str:
    real = any(model.real for model in models)
    groups = [("Top-1, %", 3), ("Top-5, %", 3), *([("ReaL top-1, %", 2)] if real else [])]
    head = '<th scope="col" rowspan="2">Model</th>'
    head += "".join(f'<th scope="colgroup" colspan="{n}">{name}</th>' for name, n in groups)
    head += '<th scope="col" rowspan="2">Calibration error, %</th>'
    names = ("correct", "measured", "published")
    second = "".join(f'<th scope="col">{name}</th>' for _, n in groups for name in names[:n])
    rows = "".join(_table_row(model, i, real=real) for i, model in enumerate(models, 1))
    return (
        f'<table class="accuracy"><thead><tr>{head}</tr>\n<tr>{second}</tr></thead>\n'
        f"<tbody>\n{rows}</tbody></table>"
    )


def _table_row(model: Model, number: int, *, real: bool) -> str:
    cells = [f'<th scope="row"><a href="#model-{number}">{breakable(model.name)}</a></th>']
    for a in (model.top1, model.top5):
        cells.append(_measured(a))
        if a.published is None:
            cells.append("<td>–</td>")
        else:
            difference = round(a.percent - a.published, 2) + 0.0  # no negative zero
            points = f"{difference:+.2f}".replace("-", "−")
            word = _word(a, model)
            cells.append(f"<td>{a.published:.2f}<small>{points} {word}</small></td>")
    if real:
        cells.append(_measured(model.real, of=True) if model.real else '<td colspan="2">–</td>')
    cells.append(f"<td>{100 * model.calibration_error:.2f}</td>")
    return f"<tr>{''.join(cells)}</tr>\n"


def _measured(accuracy: Accuracy, *, of: bool = False) -> str:
    low, high = accuracy.interval95
    images = f"<small>of {accuracy.images:,}</small>" if of else ""
    return (
        f"<td>{accuracy.correct:,}{images}</td>"
        f"<td>{accuracy.percent:.2f}<small>{low:.2f} to {high:.2f}</small></td>"
    )


def _explain(models: Sequence[Model]) -> str:
    notes = [
        f"Small print: the 95{NBSP}% interval (Wilson) of a measured figure, and the difference "
        "between the measured and the published figure, in percentage points.",
        "The calibration error (ECE) is the mean distance between confidence and accuracy over "
        "15 bins of confidence.",
    ]
    if any(not model.same_images and _published(model) for model in models):
        notes.append(
            f"“Inside” and “outside” (the 95{NBSP}% interval) describe figures that were published "
            "for other images."
        )
    return f'<p class="note">{" ".join(notes)}</p>\n'


def _run(results: Results) -> str:
    run, pixels = results.run, results.pixels
    pairs = [
        ("Device", escape(run.device)),
        ("Precision", escape(run.precision)),
        ("Batch size", count(run.batch_size, "image", "images")),
        ("Compiled", "yes" if run.compile else "no"),
        ("Channels last", "yes" if run.channels_last else "no"),
        ("Processes", f"{run.processes:,}"),
        ("PyTorch threads", f"{run.threads:,}"),
        ("Decoding threads", f"{run.workers:,}"),
        ("Time", f"{duration(run.seconds)}, {run.images_per_second:,.1f} images/s"),
        ("Resumed", "yes, an earlier run was continued" if run.resumed else "no"),
        ("Pixels", _exactness(results)),
        ("Decoded by", escape(pixels.decoder)),
        ("Resized by", escape(pixels.resize)),
    ]
    versions = [(name, escape(version)) for name, version in results.versions.items()]
    return (
        f'<section id="run">\n<h2>Settings of the run</h2>\n<div class="columns">\n'
        f"<div><h3>Run</h3>\n{facts(pairs)}</div>\n"
        f"<div><h3>Versions</h3>\n{facts(versions)}</div>\n</div>\n</section>\n"
    )


def _left_out(errors: Sequence[str]) -> str:
    if not errors:
        return ""
    return (
        '<section id="left-out">\n<h2>Images left out</h2>\n'
        f"<p>The figures do not include {count(len(errors), 'image', 'images')} that could not be "
        "read.</p>\n"
        f"{messages(errors, source='the JSON file')}</section>\n"
    )
