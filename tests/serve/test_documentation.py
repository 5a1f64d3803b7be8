"""The page /docs."""

from __future__ import annotations

import re

from tests.helpers.serving import Serving

from skipnets.serve.documentation import documentation_page


def test_it_describes_every_route_and_needs_nothing_from_elsewhere(serving: Serving) -> None:
    client = serving(token="Sesame")
    page = client.get("/docs")
    assert page.status_code == 200
    described = client.get("/openapi.json", headers={"authorization": "Bearer Sesame"}).json()
    for path, methods in described["paths"].items():
        for method in methods:
            assert f"<b>{method.upper()}</b> <code>{path}</code>" in page.text
    assert "script" not in page.text
    assert not re.search(r"https?://", page.text)
    assert "sha256-" in page.headers["content-security-policy"]


def test_what_stands_in_the_description_is_text() -> None:
    described = {
        "info": {"title": "<x-1>", "summary": "a & b"},
        "components": {"schemas": {"Label": {"properties": {"<x-2>": {}}, "examples": ["<x-3>"]}}},
        "paths": {
            "/<x-4>": {
                "get": {
                    "summary": "<x-5>",
                    "parameters": [{"name": "k", "in": "query", "schema": {"minimum": 1, "default": 5}}],
                    "responses": {"200": {"content": {"x/y": {"schema": {"$ref": "#/Label"}}}}},
                }
            }
        },
    }
    page = documentation_page(described)
    assert "<x-" not in page
    for number in (1, 3, 4, 5):
        assert f"&lt;x-{number}&gt;" in page
    assert "in the query, at least 1, default 5" in page
