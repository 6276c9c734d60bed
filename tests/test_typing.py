"""A user's script under mypy --strict: right uses pass, and each typo is an error on its line."""

import re
import subprocess
import sys
import textwrap

import pytest

RIGHT = """
    from pathlib import Path

    import torch
    import snzoo
    from snzoo.nn import SwitchNorm2d

    flag = bool(snzoo.list_models("resnet*", norm="sn", pretrained=True))
    model = snzoo.create_model("resnet50v1_sn", pretrained=flag, num_classes=10, width=32)
    model = snzoo.create_model(Path("folder"), weights=None, in_chans=1, output_stride=8)
    logits: torch.Tensor = model(torch.randn(1, 3, 224, 224))
    classes: int = model.num_classes
    maps = snzoo.create_model("resnet50v1_sn", features_only=True, out_indices=(1, -1))
    channels: list[int] = maps.feature_info.channels()
    either = snzoo.create_model("resnet50v1_sn", features_only=flag)
    groups = snzoo.parameter_groups(model, lr=0.1, weight_decay=1e-4, gate_lr=None)
    torch.optim.SGD(groups, momentum=0.9)
    crop: int = snzoo.get_info("resnet50v1_sn").preprocessing.crop
    tensor: torch.Tensor = snzoo.create_transform(model)(b"")
    names: tuple[str, ...] = snzoo.predict(model, ["a.jpg", "b.jpg"], topk=5)[0].names
    snzoo.save_pretrained(model, "folder", classes=["a", "b"])
    layer = SwitchNorm2d(64, eps=1e-5, using_bn=False)
    version: str = snzoo.__version__
"""
MISTAKES = [
    'snzoo.create_model("resnet50v1_sn", pretraned=True)',
    'snzoo.create_model("resnet50v1_sn", pretrained="yes")',
    'snzoo.create_model("resnet50v1_sn", num_classes="10")',
    'snzoo.create_model("resnet50v1_sn", features_only=True, out_indicies=(1, 2))',
    'snzoo.create_model("resnet50v1_sn", out_indices=(1, 2))',
    "snzoo.list_models(norm=1)",
    "snzoo.list_model()",
    'snzoo.get_info("resnet50v1_sn").parameters',
    'snzoo.create_transform("resnet50v1_sn", crop="224")',
    'snzoo.predict("resnet50v1_sn", "a.jpg", topk="5")',
    'snzoo.parameter_groups(snzoo.create_model("resnet50v1_sn"))',
    'snzoo.save_pretrained(snzoo.create_model("resnet50v1_sn"))',
    'snzoo.nn.SwitchNorm2d("64")',
]


@pytest.mark.slow
def test_what_is_right_passes_and_typos_and_wrong_types_are_errors(tmp_path):
    """One process checks both scripts, as mypy reads all of PyTorch first."""
    (tmp_path / "right.py").write_text(textwrap.dedent(RIGHT))
    (tmp_path / "wrong.py").write_text("\n".join(["import snzoo", *MISTAKES]) + "\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary"]
    output = subprocess.run(
        [*command, "right.py", "wrong.py"], capture_output=True, text=True, cwd=tmp_path
    ).stdout
    found = {int(line) for line in re.findall(r"^wrong\.py:(\d+): error", output, re.MULTILINE)}
    missed = [text for number, text in enumerate(MISTAKES, start=2) if number not in found]
    assert not missed, output
    others = [line for line in output.splitlines() if not line.startswith("wrong.py:")]
    assert not others
