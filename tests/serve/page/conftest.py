"""The page in a browser, over real servers on loopback."""

import threading
import time

import pytest
import uvicorn
from chromium import Browser, find_browser

import snzoo
from snzoo.inference import Prediction
from snzoo.preprocessing import Preprocessing
from snzoo.serve import LocalEngine, Metrics, QueueFullError, ServedModel, create_app
from snzoo.serve.page import PHOTOS, find_examples
from snzoo.serve.types import GateShares, ModelInfo

DEMO = "resnet18v1_sn_clothing"
PREPROCESSING = Preprocessing(
    resize=40, crop=32, channel_order="RGB", scale=1, mean=(0.5,) * 3, std=(0.2,) * 3
)
RESULTS = """
  const texts = (e, what) => [...e.querySelectorAll(what)].map((found) => found.textContent);
  return [...document.querySelectorAll(".card")].map((card) => ({
    name: card.querySelector("h3").textContent,
    error: texts(card, ".bad")[0] ?? null,
    models: Object.fromEntries([...card.querySelectorAll(".columns > *")].map((model) => [
      texts(model, "h4")[0],
      [...model.querySelectorAll("li")].map((e) => texts(e, "span:not(.bar)")),
    ])),
  }));
"""
FINISHED = "document.querySelectorAll('.card .columns, .card .bad').length"


class FakeEngine:
    """A model that finds the same class in every photo, after it was busy some times."""

    def __init__(self, *, name="model", found="class", busy=0):
        shares = [0.25, 0.25, 0.5]
        gates = [GateShares(layer=name, stats=["IN", "LN", "BN"], mean=shares, var=shares)]
        info = ModelInfo(name=name, parameters=1, classes=1, input=32, license=found, gates=gates)
        self.models = {name: ServedModel(info, PREPROCESSING)}
        self.ready, self.found, self.busy = True, found, busy

    async def predict(self, model, pixels, *, topk, embeddings):
        if self.busy:
            self.busy -= 1
            raise QueueFullError("the queue is full; try again")
        return Prediction("", (self.found,), (0,), (0.5,))


@pytest.fixture(scope="session")
def make_engine():
    """Make engines of a model that finds the class that it is told."""
    return FakeEngine


@pytest.fixture(scope="session")
def serve():
    """Serve applications on ports of their own; return their addresses."""
    running = []

    def start(engine, **options):
        app = create_app(engine, **options)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}/"

    yield start
    for server, _ in running:
        server.should_exit = True
    for _, thread in running:
        thread.join()


@pytest.fixture(scope="session")
def site(serve, demo, other):
    """The address of a server of the demo network and of ``other``."""
    engine = LocalEngine({DEMO: demo, "other": other}, metrics=Metrics(), max_batch=2)
    engine.warm_up()
    return serve(engine)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    browser = Browser(find_browser(), tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def visit(chromium):
    """Open pages; return them once the models are shown."""
    pages = []

    def open_page(url, *, ready="!document.getElementById('models-section').hidden", **options):
        pages.append(chromium.open(url, **options))
        pages[-1].wait(ready)
        return pages[-1]

    yield open_page
    for page in pages:
        page.close()


@pytest.fixture(scope="session")
def examples():
    return find_examples(PHOTOS)


@pytest.fixture(scope="session")
def expect(other):
    """Return what the page must show for a photo: the percentages of each model's classes."""

    def predict(photo):
        return {
            name: [
                [label, f"{100 * share:.1f}\u00a0%"]
                for label, share in zip(found.names, found.probabilities, strict=True)
            ]
            for name, model in [(DEMO, DEMO), ("other", other.network.model)]
            for found in snzoo.predict(model, photo, device="cpu")
        }

    return predict


@pytest.fixture(scope="session")
def results():
    """Wait for the answers to ``count`` photos; return what the page shows."""

    def wait(page, count=1):
        page.wait(f"{FINISHED} == {count}")
        return page.run(RESULTS)

    return wait
