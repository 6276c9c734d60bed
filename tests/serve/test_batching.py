"""Which photos go through a network together."""

import asyncio
import threading

import numpy as np
import pytest
import torch

from snzoo.errors import NonFiniteError
from snzoo.inference.classifier import Scores
from snzoo.serve import LocalEngine, Metrics

DEMO = "resnet18v1_sn_clothing"
SIDE = 128


@pytest.fixture
def passes(demo, monkeypatch):
    """The sizes of the forward passes, which compute nothing and wait for ``passes.go``.

    Each photo's classes are its first pixels, so that answers can be told apart.
    """
    found = Passes()

    def score(pixels, *, topk=5, embeddings=False):
        found.sizes.append(len(pixels))
        found.embeddings.append(embeddings)
        found.begun.set()
        assert found.go.wait(10)
        values = pixels[:, 0, 0, :topk].long()
        probabilities = torch.full(values.shape, 0.1)
        probabilities[(pixels[:, 0, 0, 0] == 9)] = torch.nan
        return Scores(probabilities, values, pixels[:, 0, 0, :2].float() if embeddings else None)

    monkeypatch.setattr(demo, "score", score)
    return found


class Passes:
    def __init__(self):
        self.sizes = []
        self.embeddings = []
        self.go = threading.Event()
        self.begun = threading.Event()


def photo(value):
    return np.full((SIDE, SIDE, 3), value, np.uint8)


async def wait_for(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def ask(engine, value, **options):
    options = {"topk": 1, "embeddings": False} | options
    return asyncio.ensure_future(engine.predict(DEMO, photo(value), **options))


def test_photos_that_wait_go_together_up_to_the_largest_batch(demo, passes):
    async def go():
        engine = LocalEngine({DEMO: demo}, metrics=Metrics(), max_batch=4)
        first = ask(engine, 0)
        await wait_for(passes.begun.is_set)  # the device is busy from now on
        others = [ask(engine, value) for value in range(1, 7)]
        await asyncio.sleep(0.05)
        assert passes.sizes == [1]
        passes.go.set()
        return [one.indices for one in await asyncio.gather(first, *others)]

    assert asyncio.run(go()) == [(value,) for value in range(7)]
    assert passes.sizes == [1, 4, 2]


def test_free_threads_share_the_photos_that_wait(demo, passes):
    async def go():
        coming = 8
        engine = LocalEngine(
            {DEMO: demo},
            metrics=Metrics(),
            max_batch=8,
            max_wait=60,
            coming=lambda: coming,
            threads=2,
        )
        work = [ask(engine, value) for value in range(7)]
        await asyncio.sleep(0)  # they wait now, because others are coming
        coming = 0
        work.append(ask(engine, 7))
        passes.go.set()
        await asyncio.gather(*work)

    asyncio.run(go())
    assert passes.sizes == [4, 4]


@pytest.mark.parametrize("coming", [0, 1])
def test_an_idle_device_waits_only_for_photos_that_are_coming(demo, passes, coming):
    passes.go.set()

    async def go():
        engine = LocalEngine({DEMO: demo}, metrics=Metrics(), max_wait=0.2, coming=lambda: coming)
        start = asyncio.get_running_loop().time()
        first = ask(engine, 0)
        await asyncio.sleep(0.05)
        second = ask(engine, 1)
        await asyncio.gather(first, second)
        return asyncio.get_running_loop().time() - start

    seconds = asyncio.run(go())
    assert passes.sizes == ([2] if coming else [1, 1])
    assert (seconds >= 0.19) == bool(coming)


def test_a_full_batch_does_not_wait(demo, passes):
    passes.go.set()

    async def go():
        engine = LocalEngine(
            {DEMO: demo}, metrics=Metrics(), max_batch=2, max_wait=60, coming=lambda: 1
        )
        async with asyncio.timeout(10):
            await asyncio.gather(ask(engine, 0), ask(engine, 1))

    asyncio.run(go())
    assert passes.sizes == [2]


def test_photos_whose_clients_have_gone_are_not_computed(demo, passes):
    async def go():
        engine = LocalEngine({DEMO: demo}, metrics=Metrics())
        first = ask(engine, 0)
        await wait_for(passes.begun.is_set)
        others = [ask(engine, value) for value in range(1, 5)]
        await asyncio.sleep(0.01)
        for other in others[:3]:
            other.cancel()
        await asyncio.sleep(0.01)
        passes.go.set()
        return (await first).indices, (await others[3]).indices

    assert asyncio.run(go()) == ((0,), (4,))
    assert passes.sizes == [1, 1]


def test_an_answer_that_is_not_finite_is_that_of_one_photo(demo, passes):
    async def go():
        engine = LocalEngine({DEMO: demo}, metrics=Metrics(), max_wait=60, coming=lambda: 1)
        engine._max_batch = 3
        work = [ask(engine, value, embeddings=value == 1) for value in (8, 9, 1)]
        passes.go.set()
        return await asyncio.gather(*work, return_exceptions=True)

    good, bad, embedded = asyncio.run(go())
    assert passes.sizes == [3] and passes.embeddings == [True]
    assert isinstance(bad, NonFiniteError)
    assert good.indices == (8,) and good.embedding is None
    assert embedded.embedding.tolist() == [1, 1]


def test_an_error_reaches_every_photo_of_its_batch_and_the_next_batch_goes_on(
    demo, passes, monkeypatch
):
    score = demo.score

    async def go():
        engine = LocalEngine({DEMO: demo}, metrics=Metrics(), max_batch=2)
        monkeypatch.setattr(demo, "score", lambda *_, **__: 1 / 0)
        failed = await asyncio.gather(ask(engine, 0), ask(engine, 1), return_exceptions=True)
        monkeypatch.setattr(demo, "score", score)
        passes.go.set()
        return failed, await ask(engine, 2)

    failed, after = asyncio.run(go())
    assert [type(error) for error in failed] == [ZeroDivisionError] * 2
    assert after.indices == (2,)


def test_the_model_whose_photo_has_waited_longest_comes_first(demo, other, monkeypatch, passes):
    order = []
    monkeypatch.setattr(
        other,
        "score",
        lambda pixels, **_: (
            order.append("other")
            or Scores(torch.ones(len(pixels), 1), torch.zeros(len(pixels), 1).long(), None)
        ),
    )
    score = demo.score

    def first(pixels, **options):
        order.append("demo")
        return score(pixels, **options)

    monkeypatch.setattr(demo, "score", first)

    async def go():
        engine = LocalEngine({DEMO: demo, "other": other}, metrics=Metrics())
        work = [ask(engine, 0)]
        await wait_for(passes.begun.is_set)
        options = {"topk": 1, "embeddings": False}
        small = np.zeros((32, 32, 3), np.float32)
        work.append(asyncio.ensure_future(engine.predict("other", small, **options)))
        await asyncio.sleep(0.01)
        work += [ask(engine, 1), asyncio.ensure_future(engine.predict("other", small, **options))]
        await asyncio.sleep(0.01)
        passes.go.set()
        await asyncio.gather(*work)

    asyncio.run(go())
    assert order == ["demo", "other", "demo"]
