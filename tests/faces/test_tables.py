"""The tables of figures: what they say, and in which form."""

from snzoo.faces.identification import Identification, RankRate
from snzoo.faces.rates import Rate
from snzoo.faces.tables import (
    format_markdown,
    format_text,
    tabulate_identification,
    tabulate_verification,
)
from snzoo.faces.verification import FoldAccuracy, FoldTar, TarAtFar, Verification

FOLDS = "TAR at FAR 1e-3 over folds"
FIRST = Verification(
    genuine=3000,
    impostors=12_000,
    accuracy=FoldAccuracy(99.768, 0.2824, 199, (99.5, 100.0), (1.2, 1.3)),
    tar_at_far=(TarAtFar(1e-3, Rate.count(2900, 3000), 1.1, 12), TarAtFar(1e-5)),
    fold_tar=FoldTar(96.5, 1.25, 0.00107),
    equal_error_rate=0.0123,
    auc=0.99912345,
    roc=((0, 0), (1, 1)),
)
SECOND = Verification(
    20, 20, FoldAccuracy(50, 0, 20, (50.0,), (0.0,)), (TarAtFar(1e-3),), None, 0.5, 0.5, ()
)


def test_a_table_has_a_row_for_each_figure_and_a_column_for_each_model():
    table = tabulate_verification({"face_a": FIRST, "face_b": SECOND})
    assert table == [
        ["", "face_a", "face_b"],
        ["genuine pairs", "3,000", "20"],
        ["impostor pairs", "12,000", "20"],
        ["accuracy over 2 folds, %", "99.77 ± 0.28", "–"],
        ["TAR at FAR 1e-3, %", "96.67 [95.96, 97.25]", "not measurable"],
        ["TAR at FAR 1e-5, %", "not measurable", "–"],
        [f"{FOLDS} (insightface), %", "96.50 ± 1.25 (FAR 1.07e-3)", "not measurable"],
        ["equal error rate, %", "1.23", "50.00"],
        ["area under the ROC curve", "0.999123", "0.500000"],
        ["accuracy over 1 folds, %", "–", "50.00 ± 0.00"],
    ]


def test_identification_has_its_protocol_and_numbers():
    rates = (RankRate(1, Rate.count(985, 1000)), RankRate(10, Rate.count(1000, 1000)))
    table = tabulate_identification({"a": Identification("megaface", 50, 50, 1_000_000, rates)})
    assert table[1:] == [
        ["protocol", "megaface"],
        ["probes", "50"],
        ["gallery", "50"],
        ["distractors", "1,000,000"],
        ["trials", "1,000"],
        ["rank-1, %", "98.50 [97.54, 99.09]"],
        ["rank-10, %", "100.00 [99.62, 100.00]"],
    ]


def test_columns_are_aligned_and_control_characters_escaped():
    assert format_text([["", "a\x1b[2J"], ["long name", "1"]]) == [
        r"           a\x1b[2J",
        "long name         1",
    ]


def test_markdown_escapes_the_separator():
    assert format_markdown([["", "a|b"], ["x", "1\n"]]) == [
        "|  | a\\|b |",
        "| --- | ---: |",
        "| x | 1\\n |",
    ]
