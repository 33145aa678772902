"""The example of a service that the page on serving shows."""

import importlib.util
import io

import pytest
from PIL import Image

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
pytest.importorskip('fastapi')
pytest.importorskip('httpx')

from tests.docs.blocks import ROOT
from tests.serving.files import classifier
from tests.serving.test_serving import picture


@pytest.fixture
def client(tmp_path, monkeypatch):
    from fastapi.testclient import TestClient

    classifier(tmp_path / 'c.onnx')
    monkeypatch.setenv('MODEL', str(tmp_path / 'c.onnx'))
    spec = importlib.util.spec_from_file_location('app', ROOT / 'docs/serving/app.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with TestClient(module.app) as client:
        yield client, module


def test_the_service_answers_as_the_model_and_refuses_what_is_no_image(client):
    client, module = client
    assert client.get('/health').json()['kind'] == 'classifier'
    file = io.BytesIO()
    Image.fromarray(picture(50, 70)).save(file, 'PNG')
    answer = client.post('/predict', content=file.getvalue())
    assert answer.status_code == 200 and answer.json() == module.model(picture(50, 70)).to_dict()
    refused = client.post('/predict', content=b'no image')
    assert refused.status_code == 422 and 'image' in refused.json()['detail']
    assert client.post('/predict', content=bytes(module.LARGEST + 1)).status_code == 413
