"""A small HTTP service around a deployed file: POST the bytes of an image to /predict, get names and scores as JSON."""

import os

from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool

from cnv2_plugin.serving import Model

LARGEST = 20_000_000
model = Model(os.environ.get('MODEL', 'model.onnx'), threads=int(os.environ.get('THREADS', '1')))
app = FastAPI(title='cnv2_plugin')


@app.get('/health')
def health() -> dict:
    """Tell what is served."""
    return dict(file=model.path, kind=model.about.kind, classes=list(model.about.classes))


@app.post('/predict')
async def predict(request: Request) -> dict:
    """Answer for one image."""
    image = bytearray()
    async for chunk in request.stream():
        image += chunk
        if len(image) > LARGEST:
            raise HTTPException(413, f'The image has more than {LARGEST} bytes; send a smaller one.')
    try:
        answer = await run_in_threadpool(model, bytes(image))
    except ValueError as error:
        raise HTTPException(422, str(error)) from error
    return answer.to_dict()
