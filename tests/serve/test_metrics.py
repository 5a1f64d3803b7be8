"""What a server counts."""

from __future__ import annotations

from tests.helpers.serving import Serving, make_colors, make_image, served, upload

from skipnets.serve import create_app


def test_metrics_count_what_happened_and_each_server_its_own(serving: Serving) -> None:
    client = serving()
    for _ in range(2):
        client.post("/v1/predict", files=upload(make_image("red"), b"no image"))
    client.get("/v1/nothing?x=1")
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    lines = response.text.splitlines()
    assert 'skipnets_requests_total{path="/v1/predict",status="200"} 2.0' in lines
    assert 'skipnets_requests_total{path="other",status="404"} 1.0' in lines
    assert 'skipnets_images_total{outcome="answered"} 2.0' in lines
    assert 'skipnets_images_total{outcome="unreadable"} 2.0' in lines
    assert "skipnets_batch_images_sum 2.0" in lines
    assert any(line.startswith('skipnets_model_info{name="resnet20",runtime="onnxruntime"') for line in lines)
    with served(create_app(make_colors())) as other:
        assert "v1/predict" not in other.get("/metrics").text
