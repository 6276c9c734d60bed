"""The report of training runs: curves, the best epochs, and the recipes side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from snzoo.evaluation.results import Accuracy
from snzoo.report.curves import Curve, legend, line_chart, sample
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
from snzoo.report.run_log import Epoch, Pairs, Run, Validation

MOST_ROWS = 200  # the number of epochs that a table lists
LONGEST = 300  # the number of characters of a setting that are shown

Runs = Sequence[tuple[str, Run]]  # each with its name


def make_run_report(runs: Runs) -> str:
    """Return the report of named runs as one HTML document that needs no other file."""
    title = f"{len(runs)} training runs"
    if len(runs) == 1:
        title = f"Training of {runs[0][1].settings.model}"
    about = [_section(name, run, f"run-{i}") for i, (name, run) in enumerate(runs, 1)]
    sections = [f'<p class="lead">{_state(runs)}</p>\n', _curves(runs)]
    sections += (
        [*about, _recipes(runs)] if len(runs) == 1 else [_summary(runs), _recipes(runs), *about]
    )
    footer = "Made by snzoo report. Figures are rounded; the log of the run is exact."
    return make_page(title, "".join(sections), footer=footer)


def _state(runs: Runs) -> str:
    """Return sentences that say which runs are finished, and how far the others are."""
    going = [(name, run) for name, run in runs if not run.finished]
    if len(runs) == 1:
        first = "" if going else f"The run is finished: {_progress(runs[0][1])}."
    else:
        first = f"{len(runs) - len(going)} of {len(runs)} runs are finished. "
    return first + " ".join(
        f"The run <b>{escape(name)}</b> is <strong>not finished</strong>: {_progress(run)}."
        for name, run in going
    )


def _progress(run: Run) -> str:
    """Return e.g. ``2.93 of 30 epochs``."""
    if not run.steps and not run.epochs:
        return "no step is logged yet"
    done = max([*(epoch.epoch for epoch in run.epochs), *(step.epoch for step in run.steps)])
    planned = run.settings.epochs
    done_of = f"{round(done, 2):,g}"
    return (
        f"{done_of} epochs"
        if planned is None
        else f"{done_of} of {count(planned, 'epoch', 'epochs')}"
    )


def _curves(runs: Runs) -> str:
    steps = [[(s.epoch, s.loss, s.lr) for s in run.steps] for _, run in runs]
    loss = [Curve(i, [(x, y) for x, y, _ in line]) for i, line in enumerate(steps)]
    rates = [Curve(i, [(x, y) for x, _, y in line]) for i, line in enumerate(steps)]
    train = [
        Curve(i, [(e.epoch, e.train_top1) for e in run.epochs]) for i, (_, run) in enumerate(runs)
    ]
    figures = [
        _figure("Loss over epochs", loss + _losses(runs)),
        _figure(f"{_name_of_share(runs)} over epochs, %", train + _shares(runs)),
        _figure("Learning rate over epochs", rates, zero=True),
    ]
    names = "" if len(runs) == 1 else legend((sample(i), name) for i, (name, _) in enumerate(runs))
    kinds = [
        (sample(0, plain=True), "training"),
        (sample(0, strong=True, plain=True), "validation"),
    ]
    charts = "".join(figures)
    return (
        f'<section id="curves">\n<h2>Curves</h2>\n{names}{legend(kinds)}'
        f'<div class="columns">\n{charts}</div>\n</section>\n'
    )


def _name_of_share(runs: Runs) -> str:
    kinds = {e.found.noun for _, run in runs for e in run.epochs if e.found}
    return (
        " and ".join(
            name for noun, name in (("images", "Top-1"), ("pairs", "Right pairs")) if noun in kinds
        )
        or "Top-1"
    )


def _losses(runs: Runs) -> list[Curve]:
    """Return the validation losses of classifiers; pairs have none."""
    return [
        Curve(i, [(e.epoch, e.validation.loss) for e in run.epochs if e.validation], strong=True)
        for i, (_, run) in enumerate(runs)
    ]


def _shares(runs: Runs) -> list[Curve]:
    return [
        Curve(i, [(e.epoch, _percent(e.found)) for e in run.epochs if e.found], strong=True)
        for i, (_, run) in enumerate(runs)
    ]


def _percent(found: Validation | Pairs) -> float:
    correct, cases = found.score
    return 100 * correct / cases


def _figure(caption: str, curves: Sequence[Curve], *, zero: bool = False) -> str:
    label = f"{caption}, a line for each run; the tables below hold the figures of the epochs."
    drawn = any(curve.points for curve in curves)
    chart = line_chart(curves, label=label, zero=zero) if drawn else "<p>Nothing is logged yet.</p>"
    return f"<figure><figcaption>{caption}</figcaption>{chart}</figure>\n"


def _summary(runs: Runs) -> str:
    share = f"{_name_of_share(runs)}, %"
    heads = ("Run", "Images", "Epochs", "Best epoch", "Correct", share, "Time", "Images/s")
    rows = [_summary_row(name, run, i) for i, (name, run) in enumerate(runs, 1)]
    return (
        f'<section id="best">\n<h2>Best epochs</h2>\n{_table(heads, rows, "Best epochs")}'
        f'<p class="note">Small print: the 95{NBSP}% interval (Wilson).</p>\n</section>\n'
    )


def _table(heads: Iterable[str], rows: Iterable[str], label: str) -> str:
    """Return a table of rows (HTML) below heads (text)."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody>"
    return scrolling(f'<table class="runs">{body}</table>', label=label)


def _summary_row(name: str, run: Run, number: int) -> str:
    best = ["–", "–", "–"]
    if run.best and (v := run.best.found):
        correct, cases = v.score
        low, high = Accuracy.count(correct, cases).interval95
        interval = f"<small>{low:.2f} to {high:.2f}</small>"
        best = [
            f"{run.best.epoch:,}",
            f"{correct:,} of {cases:,}",
            f"{_percent(v):.2f}{interval}",
        ]
    link = f'<a href="#run-{number}">{escape(name)}</a>'
    cells = [f"{run.settings.train.images:,}", f"{len(run.epochs):,}", *best, _time(run)]
    row = "".join(f"<td>{cell}</td>" for cell in [*cells, _speed(run)])
    model = f"<small>{breakable(run.settings.model)}</small>"
    return f'<tr><th scope="row">{link}{model}</th>{row}</tr>\n'


def _time(run: Run) -> str:
    return duration(sum(epoch.seconds for epoch in run.epochs)) if run.epochs else "–"


def _speed(run: Run) -> str:
    """Return the median, which pauses and the start of a run hardly change."""
    return f"{median(s.images_per_second for s in run.steps):,.1f}" if run.steps else "–"


def _recipes(runs: Runs) -> str:
    """Return the settings of each run, those that differ first."""
    columns = [_settings(run) for _, run in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [(name, [column.get(name, "–") for column in columns]) for name in names]
    same = [(name, values[0]) for name, values in rows if len(set(values)) == 1]
    differing = [(name, values) for name, values in rows if len(set(values)) > 1]
    half = (len(same) + 1) // 2
    lists = f'<div class="columns">\n{facts(same[:half])}{facts(same[half:])}</div>\n'
    if len(runs) > 1:
        known = f"{count(len(same), 'setting', 'settings')} with the same value in all runs"
        lists = f"<details><summary>{known}</summary>\n{lists}</details>\n"
        lists = _differences(runs, differing) + lists
    return f'<section id="recipe">\n<h2>Recipe</h2>\n{lists}</section>\n'


def _differences(runs: Runs, settings: Sequence[tuple[str, Sequence[str]]]) -> str:
    if not settings:
        return ""
    rows = []
    for name, values in settings:
        cells = "".join(f'<td class="text">{value}</td>' for value in values)
        rows.append(f'<tr><th scope="row">{breakable(name)}</th>{cells}</tr>\n')
    return _table(["Setting", *(name for name, _ in runs)], rows, "Settings that differ")


def _settings(run: Run) -> dict[str, str]:
    """Return the settings that make a run, as text (names) and HTML (values)."""
    s = run.settings
    values: dict[str, object] = {"model": s.model, **s.recipe, "seed": s.seed}
    values |= {"processes": s.processes, "training images": s.train.images}
    return {_shorten(name): _format(value) for name, value in values.items()}


def _format(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_format, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return escape(_shorten(f"{value:.10g}" if isinstance(value, float) else str(value)))


def _shorten(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def _section(name: str, run: Run, anchor: str) -> str:
    skipped = ""
    if run.skipped:
        lines = [f"{s.photo}: {s.reason}" for s in run.skipped]
        skipped = "<h3>Skipped photos</h3>\n<p>The run did without "
        skipped += f"{count(len(lines), 'photo', 'photos')} that could not be read.</p>\n"
        skipped += messages(lines, source="the log of the run")
    return (
        f'<section id="{anchor}">\n<h2>{escape(name)}</h2>\n{facts(_about(run))}'
        f"{_epochs(run.epochs)}{skipped}</section>\n"
    )


def _about(run: Run) -> list[tuple[str, str]]:
    s = run.settings
    splits = [("Training", s.train), ("Validation", s.validation)]
    pairs = [("Model", breakable(s.model))]
    pairs += [(name, escape(split.description)) for name, split in splits if split]
    pairs += [
        ("Epochs", _progress(run) if run.finished else f"{_progress(run)}; not finished"),
        ("Best epoch", _best(run.best)),
    ]
    if run.steps:
        pairs.append(("Time", f"{_time(run)}, {_speed(run)} images/s"))
    if run.resumes:
        times = count(len(run.resumes), "time", "times")
        pairs.append(("Resumed", f"{times}, last after step {run.resumes[-1].step:,}"))
    if s.command:
        pairs.append(("Command", escape(s.command)))
    if s.versions:
        pairs.append(("Versions", escape(", ".join(f"{k} {v}" for k, v in s.versions.items()))))
    return pairs


def _best(epoch: Epoch | None) -> str:
    if epoch is None or (found := epoch.found) is None:
        return "none is validated yet"
    correct, cases = found.score
    low, high = Accuracy.count(correct, cases).interval95
    also = (
        f"equal error rate {100 * found.equal_error_rate:.2f}"
        if isinstance(found, Pairs)
        else f"top-5 {100 * found.top5 / cases:.2f}"
    )
    return (
        f"{epoch.epoch:,}: {correct:,} of {cases:,} {found.noun} right, {_percent(found):.2f}"
        f"{NBSP}% (95{NBSP}% interval {low:.2f} to {high:.2f}); {also}{NBSP}%"
    )


def _epochs(epochs: Sequence[Epoch]) -> str:
    """Return the folded table of the last epochs."""
    if not epochs:
        return ""
    heads = ("Epoch", "Training loss", "top-1, %", "Validation loss", "top-1, %", "Correct")
    rows = []
    for e in epochs[-MOST_ROWS:]:
        cells = [f"{e.train_loss:.4g}", f"{e.train_top1:.2f}", "–", "–", "–"]
        if v := e.found:
            correct, cases = v.score
            loss = f"{v.loss:.4g}" if isinstance(v, Validation) else "–"
            cells[2:] = [loss, f"{_percent(v):.2f}", f"{correct:,} of {cases:,}"]
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{e.epoch:,}</th>{row}</tr>\n')
    label = f"All {len(epochs):,} epochs"
    if len(epochs) > MOST_ROWS:
        label = f"The last {MOST_ROWS} of {len(epochs):,} epochs"
    return f"<details><summary>{label}</summary>\n{_table(heads, rows, label)}</details>\n"
