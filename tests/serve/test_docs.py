"""The commands and the documents of docs/serving.md."""

import json
import re
import shlex
from pathlib import Path

import pytest

from snzoo.cli.main import build_parser
from snzoo.serve.types import PredictRequest, PredictResponse

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def snzoo_commands():
    """The arguments of each `snzoo`, also of one after a pipe or under torchrun."""
    for line in "".join(blocks("bash")).splitlines():
        words = shlex.split(line.split(" | ")[-1])
        if words[0] == "torchrun":
            words = words[words.index("-m") + 1 :]
        if words[0] == "snzoo":
            yield words[1:]


@pytest.mark.parametrize("arguments", [*snzoo_commands()], ids=" ".join)
def test_commands_are_those_of_the_parser(arguments):
    assert callable(build_parser().parse_args(arguments).run)


def test_documents_are_those_of_the_api():
    request, answer = blocks("json")
    assert PredictRequest.model_validate_json(request).model_dump(exclude_unset=True).keys() == set(
        PredictRequest.model_fields
    )
    parsed = PredictResponse.model_validate_json(answer, strict=True)
    assert parsed.model_dump() == json.loads(answer)  # all fields are there, and no other
