"""The section of one model: its accuracy by class and its most frequent confusions."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from snzoo.evaluation.results import ClassCount, Model, Pair
from snzoo.preprocessing import RULES, Preprocessing
from snzoo.report.charts import bar, histogram
from snzoo.report.markup import NBSP, count, escape, facts, scrolling
from snzoo.report.thumbnails import SIDE, Thumbnails

FEW = 24  # up to this number of classes, each class has a bar
ENDS = 10  # with more classes, this number of the lowest and of the highest have bars
PAIRS = 6  # the number of confused pairs that are not folded


def model_section(model: Model, thumbnails: Thumbnails, *, anchor: str) -> str:
    """Return the section as HTML; ``anchor`` is its id."""
    calibration = f"{100 * model.calibration_error:.2f}{NBSP}% (ECE, 15 bins)"
    pairs = [
        ("Architecture", escape(model.architecture)),
        ("Weights", "from the zoo" if model.weights is None else escape(model.weights)),
        ("Input", _describe_input(model.preprocessing)),
        ("Calibration error", calibration),
    ]
    if present := model.present:
        figures = [f"{a.percent:.2f}{NBSP}%" for a in (present.top1, present.top5)]
        among = f"when only the {count(present.classes, 'class', 'classes')} in the data compete"
        pairs.append(("Classes present", f"top-1 {figures[0]}, top-5 {figures[1]}, {among}"))
    about = facts(pairs)
    return (
        f'<section id="{anchor}">\n<h2>{escape(model.name)}</h2>\n{about}'
        f"{_classes(model.per_class)}{_confused(model, thumbnails)}</section>\n"
    )


def _describe_input(preprocessing: Preprocessing) -> str:
    p = preprocessing
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (p.mean, p.std))
    return (
        f"shorter side resized to {p.resize} ({RULES[p.resampling]}), "
        f"center crop of {p.crop}{NBSP}×{NBSP}{p.crop}, "
        f"{p.channel_order} from 0 to {p.scale}, mean {mean}, std {std}"
    )


def _classes(classes: Sequence[ClassCount]) -> str:
    """Return the top-1 accuracy of each class; of many classes, a histogram and both ends."""
    if not classes:
        return ""
    ordered = sorted(classes, key=lambda c: (c.percent, -c.images, c.index))
    start = f"<h3>Classes</h3>\n<p>{_spread(ordered)}</p>\n"
    if len(ordered) <= FEW:
        return f"{start}{_bars(ordered, 'Top-1 by class, lowest first')}{_list(classes)}"
    highest = sorted(classes, key=lambda c: (-c.percent, -c.images, c.index))
    chart = histogram(
        [c.percent for c in ordered],
        label=f"Histogram of the top-1 accuracies of {len(ordered):,} classes.",
    )
    return (
        f"{start}<figure><figcaption>Number of classes by top-1</figcaption>{chart}</figure>\n"
        f'<div class="columns">\n{_bars(ordered[:ENDS], f"{ENDS} classes with the lowest top-1")}'
        f"{_bars(highest[:ENDS], f'{ENDS} classes with the highest top-1')}</div>\n"
        f"{_list(classes)}"
    )


def _spread(ordered: Sequence[ClassCount]) -> str:
    values = [c.percent for c in ordered]
    clauses = [f"The median top-1 of {count(len(values), 'class', 'classes')} is "]
    clauses[0] += f"{median(values):.1f}{NBSP}%"
    for end in (100, 0):
        if number := sum(value == end for value in values):
            clauses.append(f"{count(number, 'class has', 'classes have')} {end}{NBSP}%")
    return f"{'; '.join(clauses)}."


def _bars(classes: Sequence[ClassCount], caption: str) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(c.name)}</th><td class="wide">{bar(c.percent)}</td>'
        f"<td>{c.percent:.1f}{NBSP}%</td><td>{c.top1:,} of {c.images:,}</td></tr>\n"
        for c in classes
    )
    return (
        f'<table class="bars"><caption>{escape(caption)}</caption>\n<thead><tr>'
        '<th scope="col">Class</th><th scope="col" colspan="2">Top-1</th>'
        '<th scope="col">Correct</th></tr></thead>\n'
        f"<tbody>\n{rows}</tbody></table>\n"
    )


def _list(classes: Sequence[ClassCount]) -> str:
    rows = "".join(
        f'<tr><td>{c.index}</td><th scope="row">{escape(c.name)}</th><td>{c.images:,}</td>'
        f"<td>{c.top1:,}</td><td>{c.percent:.1f}</td>"
        f"<td>{c.top5:,}</td><td>{100 * c.top5 / c.images:.1f}</td></tr>\n"
        for c in sorted(classes, key=lambda c: c.index)
    )
    heads = ["Index", "Class", "Images", "Top-1", "%", "Top-5", "%"]
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    table = f'<table class="list"><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table>'
    label = f"All {len(classes):,} classes"
    return f"<details><summary>{label}</summary>\n{scrolling(table, label=label)}</details>\n"


def _confused(model: Model, thumbnails: Thumbnails) -> str:
    """Return the most frequent confusions, each with some of its images."""
    if not model.confused:
        return ""
    images = {c.index: c.images for c in model.per_class}
    cards = [_card(pair, images.get(pair.label), thumbnails.uris) for pair in model.confused]
    parts = [
        "<h3>Most confused</h3>\n"
        "<p>The number of images of one class that the model took for another, most frequent "
        "first.</p>\n"
    ]
    if thumbnails.note:
        parts.append(f'<p class="note">{escape(thumbnails.note)}</p>\n')
    parts.append(f'<div class="cards">\n{"".join(cards[:PAIRS])}</div>\n')
    if rest := cards[PAIRS:]:
        summary = f"{count(len(rest), 'more pair', 'more pairs')}"
        parts.append(f'<details><summary>{summary}</summary>\n<div class="cards">\n')
        parts.append(f"{''.join(rest)}</div></details>\n")
    return "".join(parts)


def _card(pair: Pair, images: int | None, uris: dict[str, str]) -> str:
    share = f"{NBSP}of{NBSP}{images:,}" if images else ""
    pictures = "".join(
        f'<img src="{uris[name]}" alt="{escape(name)}" title="{escape(name)}" '
        f'width="{SIDE}" height="{SIDE}">'
        for name in pair.examples
        if name in uris
    )
    return (
        f'<figure class="card"><figcaption><b>{escape(pair.label_name)}</b> taken for '
        f"<b>{escape(pair.predicted_name)}</b> <span>{pair.count:,}{share}</span></figcaption>"
        f"{f'<div>{pictures}</div>' if pictures else ''}</figure>\n"
    )
