"""Limits on bodies, on the queue and on time; what happens when a client goes."""

import asyncio
import time

import pytest

from snzoo.errors import NonFiniteError
from snzoo.inference import Prediction
from snzoo.serve import Decoder, Limits, LocalEngine, Metrics, QueueFullError, create_app

DEMO = "resnet18v1_sn_clothing"


class Client:
    """A client that sends chunks of a body one by one, and may go after the last one.

    A chunk may be a number, the seconds to wait before the next chunk.
    """

    def __init__(self, *chunks, headers=(), goes=False):
        self.chunks = list(chunks)
        self.headers = [(b"content-type", b"image/jpeg"), *headers]
        self.goes = goes
        self.taken = 0
        self.messages = []
        self.answered = asyncio.Event()

    async def receive(self):
        while self.chunks and isinstance(self.chunks[0], float):
            await asyncio.sleep(self.chunks.pop(0))
        if self.chunks:
            chunk = self.chunks.pop(0)
            self.taken += len(chunk)
            return {"type": "http.request", "body": chunk, "more_body": bool(self.chunks)}
        if not self.goes:
            await self.answered.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.messages.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.answered.set()

    async def post(self, app):
        """Send the request; return the status and the seconds until the answer."""
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": "/v1/predict",
            "query_string": b"",
            "headers": self.headers,
            "root_path": "",
            "scheme": "http",
        }
        start = time.monotonic()
        await app(scope, self.receive, self.send)
        return self.messages[0]["status"], time.monotonic() - start

    @property
    def answer_headers(self):
        return dict(self.messages[0]["headers"])


class SlowEngine:
    """An engine that answers once it is told to, and counts."""

    ready = True

    def __init__(self, models):
        self.models = models
        self.go = asyncio.Event()
        self.begun = self.cancelled = 0

    async def predict(self, model, pixels, *, topk, embeddings):
        self.begun += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Prediction("", ("a",), (0,), (1.0,))


@pytest.fixture
def photo(contents):
    return contents["turned.jpg"]


@pytest.fixture
def models(demo):
    return LocalEngine({DEMO: demo}, metrics=Metrics()).models


LENGTH = b"content-length"


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_limit_is_refused(models, declared):
    async def go():
        app = create_app(SlowEngine(models), limits=Limits(body=1000))
        headers = [(LENGTH, b"100000")] if declared else []
        client = Client(*[b"x" * 100] * 1000, headers=headers)
        status, _ = await client.post(app)
        return status, client.taken

    status, taken = asyncio.run(go())
    assert status == 413 and taken == (0 if declared else 1100)


def test_a_wrong_length_does_not_lift_the_limit(models):
    async def go():
        app = create_app(SlowEngine(models), limits=Limits(body=1000))
        client = Client(*[b"x" * 100] * 1000, headers=[(LENGTH, b"10")])
        return await client.post(app)

    assert asyncio.run(go())[0] == 413


def test_a_slow_body_is_given_up(models):
    async def go():
        app = create_app(SlowEngine(models), limits=Limits(timeout=0.3))
        return await Client(b"x", 0.2, b"x", 0.2, b"x", 5.0, b"x").post(app)

    status, seconds = asyncio.run(go())
    assert status == 408 and 0.25 < seconds < 2


def test_a_full_queue_answers_at_once_and_reads_nothing(models, photo):
    async def go():
        engine = SlowEngine(models)
        app = create_app(engine, limits=Limits(queue=3))
        clients = [Client(photo) for _ in range(3)]
        work = [asyncio.ensure_future(client.post(app)) for client in clients]
        while engine.begun < 3:
            await asyncio.sleep(0.01)
        late = Client(photo)
        status, seconds = await late.post(app)
        engine.go.set()
        done = [await each for each in work]
        again, _ = await Client(photo).post(app)
        return status, seconds, late, [each[0] for each in done], again

    status, seconds, late, done, again = asyncio.run(go())
    assert status == 503 and late.answer_headers[b"retry-after"] == b"1"
    assert late.taken == 0 and seconds < 1
    assert done == [200] * 3 and again == 200


def test_a_request_counts_with_all_its_photos(models, photo):
    """Of two requests with two photos, a queue of three takes one."""

    async def go():
        engine = SlowEngine(models)
        app = create_app(engine, limits=Limits(queue=3))
        part = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n'
        body = (part + photo + b"\r\n") * 2 + b"--x--"
        clients = [Client(body), Client(body)]
        for client in clients:
            client.headers = [(b"content-type", b"multipart/form-data; boundary=x")]
        first = asyncio.ensure_future(clients[0].post(app))
        while engine.begun < 2:
            await asyncio.sleep(0.01)
        second, _ = await clients[1].post(app)
        engine.go.set()
        return (await first)[0], second

    assert asyncio.run(go()) == (200, 503)


def test_a_request_with_more_photos_than_the_queue_is_too_large_and_not_late(models):
    part = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\na\r\n'
    client = Client(part * 4 + b"--x--")
    client.headers = [(b"content-type", b"multipart/form-data; boundary=x")]
    status, _ = asyncio.run(client.post(create_app(SlowEngine(models), limits=Limits(queue=3))))
    assert status == 413


def test_work_that_takes_too_long_is_given_up(models, photo):
    async def go():
        engine = SlowEngine(models)
        app = create_app(engine, limits=Limits(timeout=0.3, queue=1))
        client = Client(photo)
        status, seconds = await client.post(app)
        engine.go.set()
        again, _ = await Client(photo).post(app)  # its place in the queue is free
        return status, seconds, engine.cancelled, client.answer_headers, again

    status, seconds, cancelled, headers, again = asyncio.run(go())
    assert (status, cancelled, again) == (503, 1, 200) and 0.25 < seconds < 2
    assert b"retry-after" in headers


def test_the_work_of_a_client_that_goes_is_dropped(models, photo):
    async def go():
        engine = SlowEngine(models)
        app = create_app(engine, limits=Limits(queue=1))
        gone = Client(photo, goes=True)
        await gone.post(app)
        engine.go.set()
        again, _ = await Client(photo).post(app)
        return engine.begun, engine.cancelled, again

    begun, cancelled, again = asyncio.run(go())
    assert again == 200 and cancelled == begun - 1


def test_a_client_that_goes_while_it_sends_frees_its_place(models, photo):
    async def go():
        app = create_app(SlowEngine(models), limits=Limits(queue=1))
        client = Client(photo, goes=True)

        async def receive(first=client.receive):
            message = await first()
            return message | {"more_body": True} if "more_body" in message else message

        client.receive = receive
        await client.post(app)
        engine = SlowEngine(models)
        return (await Client(b"no photo").post(app))[0], engine.begun

    assert asyncio.run(go()) == (422, 0)


def test_photos_that_no_thread_has_begun_are_dropped(models, photo, monkeypatch):
    decoded = []

    def slow(content, *_, **__):
        decoded.append(content)
        time.sleep(0.2)
        raise NonFiniteError("stop")

    monkeypatch.setattr("snzoo.serve.photos.load_pixels", slow)

    async def go():
        decoder = Decoder(workers=1, metrics=Metrics())
        app = create_app(SlowEngine(models), decoder=decoder)
        stays, *others = [Client(photo), *(Client(photo, goes=True) for _ in range(9))]
        await asyncio.gather(stays.post(app), *(other.post(app) for other in others))
        return decoder.pending

    assert asyncio.run(go()) == 0 and len(decoded) <= 2


def test_an_engine_may_refuse_work(models, photo):
    async def go():
        engine = SlowEngine(models)

        async def refuse(*_, **__):
            raise QueueFullError("the replicas are busy")

        engine.predict = refuse
        client = Client(photo)
        return await client.post(create_app(engine)), client

    (status, _), client = asyncio.run(go())
    assert status == 503 and client.answer_headers[b"retry-after"] == b"1"


def test_work_that_the_server_stops_has_an_answer(models, photo):
    async def go():
        engine = SlowEngine(models)
        app = create_app(engine)
        client = Client(photo)
        work = asyncio.ensure_future(client.post(app))
        while not engine.begun:
            await asyncio.sleep(0.01)
        app.state.stopping = True
        work.cancel()
        return (await work)[0], client.messages[-1]["body"], engine.cancelled

    assert asyncio.run(go()) == (503, b'{"detail":"the server is stopping"}', 1)


def test_a_decoder_is_warm_whatever_its_limits(demo):
    decoder = Decoder(workers=1, limits=Limits(pixels=1), metrics=Metrics())
    decoder.warm_up([demo.spec.preprocessing])
