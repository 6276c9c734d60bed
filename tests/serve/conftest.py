"""Applications in this process, and requests to them without a network."""

import asyncio
import io

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

import snzoo
from snzoo.inference import Classifier, Network
from snzoo.preprocessing import Preprocessing
from snzoo.serve import Limits, LocalEngine, Metrics, create_app, load_classifiers

DEMO = "resnet18v1_sn_clothing"


def encode(pixels, kind="JPEG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="session")
def contents():
    """The contents of photos of several formats: turned by EXIF, gray, with transparency."""
    noise = np.random.default_rng(0).integers(0, 256, (150, 230, 4), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "turned.jpg": encode(noise[..., :3], exif=turned),
        "gray.png": encode(noise[..., 0], "PNG"),
        "clear.webp": encode(noise, "WEBP", lossless=True),
        "flat.bmp": encode(noise[..., :3] // 2, "BMP"),
    }


@pytest.fixture(scope="session")
def demo():
    return load_classifiers([DEMO], device="cpu")[DEMO]


@pytest.fixture(scope="session")
def other():
    """A network without SN, whose photos are resized by another rule."""
    torch.manual_seed(0)
    model = snzoo.create_model("resnet18v1_bn", width=8, num_classes=12).eval()
    preprocessing = Preprocessing(
        resize=40,
        crop=32,
        channel_order="RGB",
        scale=1,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        resampling="tf1-bilinear",
    )
    object.__setattr__(model.spec, "preprocessing", preprocessing)
    return Classifier(model.spec, Network(model, preprocessing))


@pytest.fixture
def make_app(demo):
    """Return applications with a warm engine, by default of the demo network."""

    def make(classifiers=None, *, limits=None, **options):
        metrics = Metrics()
        engine = LocalEngine(classifiers or {DEMO: demo}, metrics=metrics)
        engine.ready = True
        return create_app(engine, limits=limits or Limits(), metrics=metrics, **options)

    return make


def client(app):
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")


@pytest.fixture
def ask():
    """Send a request to an application; return the response."""

    def send(app, method, path, **options):
        async def go():
            async with client(app) as session:
                return await session.request(method, path, **options)

        return asyncio.run(go())

    return send
