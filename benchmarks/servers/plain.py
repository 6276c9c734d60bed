"""A plain handler of FastAPI: PIL, torchvision's transform, one photo at a time."""

from typing import Any

import torch
import uvicorn
from common import read_arguments
from fastapi import FastAPI, UploadFile
from PIL import Image

model, transform, port = read_arguments()
app = FastAPI()


@app.post("/v1/predict")
def predict(request: UploadFile) -> dict[str, Any]:
    image = Image.open(request.file).convert("RGB")
    with torch.inference_mode():
        probabilities = model(transform(image)[None])[0].softmax(0)
    top = probabilities.topk(5)
    return {"indices": top.indices.tolist(), "probabilities": top.values.tolist()}


uvicorn.run(app, port=port, log_level="warning", access_log=False)
