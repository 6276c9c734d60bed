"""What FastAPI cannot derive for OpenAPI: the bodies that ``/v1/predict`` reads by itself."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from snzoo.serve.types import PredictRequest, PredictResponse, Problem

SCHEMAS = "#/components/schemas/"
FILE = {"type": "string", "format": "binary"}
PROBLEMS = {
    400: "The body or the query cannot be read.",
    401: "The token is missing or wrong.",
    403: "The server fetches no URLs.",
    404: "There is no such model.",
    408: "The body does not arrive in time.",
    413: "The body is too large, or has too many photos.",
    415: "The type of the body is not accepted.",
    503: "The queue is full, or the time is up.",
}
PREDICT: dict[str, Any] = {
    "responses": {
        **{status: {"model": Problem, "description": text} for status, text in PROBLEMS.items()},
        422: {"model": PredictResponse, "description": "No photo could be classified."},
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {"type": "object", "additionalProperties": FILE, "minProperties": 1}
                },
                "application/json": {"schema": {"$ref": SCHEMAS + "PredictRequest"}},
                "image/*": {"schema": FILE},
                "application/octet-stream": {"schema": FILE},
            },
        }
    },
}


def add_schemas(app: FastAPI) -> None:
    """Add the schema of the JSON body to the OpenAPI description of an application."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            body = PredictRequest.model_json_schema(ref_template=SCHEMAS + "{model}")
            document = get_openapi(
                title=app.title,
                version=app.version,
                routes=app.routes,
                separate_input_output_schemas=False,
            )
            document["components"]["schemas"] |= body.pop("$defs") | {"PredictRequest": body}
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]
