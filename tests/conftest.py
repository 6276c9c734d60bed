"""Photos and networks for tests of inference and evaluation."""

import os

# One thread in each process, also in those that tests start: pytest already uses two cores, and
# threads that wait for each other take several times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

import snzoo
from snzoo.data.samples import find_samples
from snzoo.inference import Network

settings.register_profile("snzoo", deadline=None)  # the time of an example says nothing here
settings.load_profile("snzoo")


@pytest.fixture
def photos(tmp_path):
    """Twelve random photos of several sizes, and a list file that labels them 0 to 11."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(12):
        rng = np.random.default_rng(i)
        pixels = rng.integers(0, 256, (240 + 20 * i, 300, 3), dtype=np.uint8) // (1 + i % 5)
        Image.fromarray(pixels).save(folder / f"{i:02}.jpg")
    (folder / "list.txt").write_text("".join(f"{i:02}.jpg {i}\n" for i in range(12)))
    return folder


@pytest.fixture
def samples(photos):
    return find_samples(photos / "list.txt")


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request):
    return request.param


@pytest.fixture
def make_network(device):
    """A small random network of twelve classes, some of whose answers are right."""

    def make(seed=0, preprocessing=None, **options):
        torch.manual_seed(seed)
        model = snzoo.create_model("resnet18v1_sn", width=8, num_classes=12).eval()
        preprocessing = preprocessing or model.spec.preprocessing
        return Network(model, preprocessing, **{"device": device} | options)

    return make
