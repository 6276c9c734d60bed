"""torch.hub from a plain checkout, in a process that finds the checkout and no installed snzoo."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# torch.hub looks for a GitHub repository in its folder before it asks the network.
SCRIPT = """
import inspect, sys, torch
import hubconf, snzoo
assert snzoo.__file__.startswith(sys.argv[1]), snzoo.__file__
github = {"github": "owner/snzoo:main", "skip_validation": True, "trust_repo": True}
names = torch.hub.list(**github)
assert names == sorted(snzoo.list_models()), names
for name in names:
    face = name.startswith("face_")
    options = {"source": "local", "trust_repo": True, "width": 8}
    model = torch.hub.load(".", name, **options, **{} if face else {"num_classes": 2})
    assert model.num_classes == (0 if face else 2)
    maps = torch.hub.load(
        ".", name, **options, features_only=True, **{} if face else {"output_stride": 16}
    )
    assert maps.feature_info.reduction()[-1] == 16 and len(maps.out_indices) == 4
    text = torch.hub.help(model=name, **github)
    assert all(word in text for word in ("pretrained", "features_only", "License")), text
    assert all(f"{result.top1:.2f}" in text for result in snzoo.get_info(name).published), text
    assert all(f"{r.rank1:.2f}" in text for r in snzoo.get_info(name).identification), text
    assert inspect.isfunction(getattr(hubconf, name))
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "owner_snzoo_main"
    shutil.copytree(ROOT / "snzoo", folder / "snzoo")
    for name in ("hubconf.py", "weights_manifest.json"):
        shutil.copy(ROOT / name, folder)
    return folder


def run(checkout, *code):
    return subprocess.run(
        [sys.executable, "-c", *code], cwd=checkout, capture_output=True, text=True
    )


@pytest.mark.slow
def test_every_name_is_an_entry_point_that_loads_and_explains_itself(checkout):
    done = run(checkout, SCRIPT, str(checkout))
    assert done.returncode == 0, done.stderr


def test_pretrained_weights_load_through_the_hub(checkout):
    code = (
        "import torch; model = torch.hub.load('.', 'resnet18v1_sn_clothing', source='local',"
        " trust_repo=True, pretrained=True); print(model.eval()(torch.zeros(1, 3, 128, 128)).shape)"
    )
    done = run(checkout, code)
    assert done.stdout == "torch.Size([1, 10])\n", done.stderr


def test_a_hub_user_has_transforms_and_predictions(checkout, tmp_path):
    code = """if True:
        import sys, torch
        sys.meta_path = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
        load = {"source": "local", "trust_repo": True}
        model = torch.hub.load(sys.argv[1], "resnet50v1_bn_msra", **load, width=8)
        assert sys.argv[1] not in sys.path
        import snzoo
        from PIL import Image
        assert snzoo.__file__.startswith(sys.argv[1])
        photo = Image.new("RGB", (64, 64), "red")
        x = snzoo.create_transform(model)(photo)
        print(x[:, 0, 0].round().int().tolist(), len(snzoo.predict(model, photo)))
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(checkout)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert done.stdout == "[-104, -117, 131] 1\n", done.stderr  # BGR, 0 to 255, minus the mean
