"""Requests of predictions, in the forms that the server takes, and their answers."""

import base64

import numpy as np

DEMO = "resnet18v1_sn_clothing"
PREDICT = "/v1/predict"


def as_parts(contents):
    return {"files": [("f", (name, content)) for name, content in contents.items()]}


def as_json(contents, **fields):
    images = [
        {"base64": base64.b64encode(content).decode(), "name": name}
        for name, content in contents.items()
    ]
    return {"json": {"images": images, **fields}}


def assert_equal(result, expected):
    """The result of a model is the prediction of snzoo.predict."""
    assert [c["name"] for c in result["classes"]] == list(expected.names)
    assert [c["index"] for c in result["classes"]] == list(expected.indices)
    found = [c["probability"] for c in result["classes"]]
    np.testing.assert_allclose(found, expected.probabilities, rtol=0, atol=1e-6)
    if expected.embedding is None:
        assert result["embedding"] is None
    else:
        np.testing.assert_allclose(result["embedding"], expected.embedding, rtol=1e-4, atol=1e-5)
