"""LitServe with batches: PIL, torchvision's transform."""

from typing import Any

import litserve  # type: ignore[import-untyped, import-not-found, unused-ignore]
import torch
from common import read_arguments
from fastapi import UploadFile
from PIL import Image


class Classifier(litserve.LitAPI):  # type: ignore[misc, unused-ignore]
    def setup(self, device: str) -> None:
        self.model, self.transform, _ = read_arguments()

    def decode_request(self, request: UploadFile) -> Any:
        return self.transform(Image.open(request.file).convert("RGB"))

    def batch(self, inputs: list[Any]) -> Any:
        return torch.stack(inputs)

    def predict(self, x: Any) -> Any:
        with torch.inference_mode():
            return self.model(x).softmax(1)

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, output: Any) -> dict[str, Any]:
        top = output.topk(5)
        return {"indices": top.indices.tolist(), "probabilities": top.values.tolist()}


if __name__ == "__main__":
    api = Classifier(max_batch_size=16, batch_timeout=0.005, api_path="/v1/predict")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(
        port=read_arguments()[2],
        host="127.0.0.1",
        generate_client_file=False,
        log_level="warning",
    )
