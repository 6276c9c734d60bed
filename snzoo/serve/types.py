"""The documents of the HTTP API, from which its OpenAPI description is made."""

from __future__ import annotations

from pydantic import BaseModel, Field


class ImageInput(BaseModel, extra="forbid"):
    """An image in a JSON request: its content in base64, or its URL."""

    base64: str | None = Field(None, description="The content of an image file in base64.")
    url: str | None = Field(None, description="An http(s) URL, if the server allows URLs.")
    name: str | None = Field(None, description="The name of the photo in the answer.")


class PredictRequest(BaseModel, extra="forbid"):
    """The JSON body of ``POST /v1/predict``. Its fields override those of the query."""

    images: list[ImageInput]
    models: list[str] | None = None
    topk: int | None = Field(None, ge=1, le=1_000_000)
    embeddings: bool | None = None


class ClassScore(BaseModel):
    """A class with its index in the logits and its probability, a softmax over all classes."""

    name: str
    index: int
    probability: float


class ModelPrediction(BaseModel):
    """The most probable classes that a model finds, most probable first.

    The embedding is the pooled last map, or null if it was not asked for.
    """

    model: str
    classes: list[ClassScore]
    embedding: list[float] | None = None


class PhotoResult(BaseModel):
    """The predictions of each model for a photo, or the reason why there are none."""

    name: str
    predictions: list[ModelPrediction]
    error: str | None = None


class PredictResponse(BaseModel):
    """The results in the order of the photos, and the seconds since the body was received."""

    photos: list[PhotoResult]
    seconds: float


class GateShares(BaseModel):
    """The shares of the statistics that an SN layer mixes, for its mean and its variance."""

    layer: str
    stats: list[str]
    mean: list[float]
    var: list[float]


class ModelInfo(BaseModel):
    """A model: its parameters, its number of classes, the side of its input in pixels.

    The gates of its SN layers are in the order of depth; they are null for a network without SN.
    """

    name: str
    parameters: int
    classes: int
    input: int
    license: str | None
    gates: list[GateShares] | None


class ModelList(BaseModel):
    """The models that the server has."""

    models: list[ModelInfo]


class Problem(BaseModel):
    """What is wrong with a request, in one line."""

    detail: str
