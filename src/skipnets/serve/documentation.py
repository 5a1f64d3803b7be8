"""The page /docs: the OpenAPI description as HTML, complete in itself.

FastAPI's own pages fetch their scripts from another site, which a server without an outside connection lacks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

__all__ = ["documentation_page"]

_STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8882; --accent: #1d62b8; }
@media (prefers-color-scheme: dark) { :root { --accent: #6cabf5; } }
* { box-sizing: border-box; }
body { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; font: 16px/1.55 system-ui, sans-serif; }
h2 { margin: 2.5rem 0 .25rem; font-size: 1.1rem; }
h2 code { overflow-wrap: anywhere; }
h2 b { display: inline-block; min-width: 3.6rem; color: var(--accent); }
a { color: var(--accent); }
p { margin: .4rem 0; }
code, pre { font-family: ui-monospace, monospace; font-size: .875em; }
pre { margin: .5rem 0; padding: .75rem 1rem; border-radius: .5rem; background: var(--soft);
  overflow-x: auto; }
table { width: 100%; table-layout: fixed; border-collapse: collapse; font-size: .9rem; }
td { padding: .35rem .75rem .35rem 0; border-top: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; }
td:first-child { width: 6rem; }
"""


def documentation_page(description: Mapping[str, Any]) -> str:
    """A page of HTML without scripts.

    Args:
        description: The OpenAPI description.
    """
    about = description["info"]
    operations = "".join(
        _operation(path, method, operation, description)
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(about['title'])}: the interface</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(about['title'])}</h1><p>{escape(about.get('summary', ''))} "
        'For client generators: <a href="/openapi.json">openapi.json</a>.</p>'
        f"{operations}</body></html>\n"
    )


def _operation(path: str, method: str, operation: Mapping[str, Any], description: Mapping[str, Any]) -> str:
    rows = [
        *_parameters(operation),
        *(("body", text) for text in _fields(operation.get("requestBody", {}), description)),
        *_responses(operation, description),
    ]
    cells = "".join(f"<tr><td><code>{escape(name)}</code></td><td>{text}</td></tr>" for name, text in rows)
    heading = f"<h2><b>{method.upper()}</b> <code>{escape(path)}</code></h2>"
    return (
        f"{heading}<p>{escape(operation.get('summary', ''))}</p>"
        f"{_paragraphs(operation.get('description', ''))}<table>{cells}</table>"
    )


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{escape(' '.join(part.split()))}</p>" for part in text.split("\n\n") if part.strip())


def _parameters(operation: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for parameter in operation.get("parameters", []):
        schema = parameter.get("schema", {})
        described = [f"in the {parameter['in']}", str(schema.get("type", ""))]
        described += [f"{word} {schema[key]}" for word, key in _BOUNDS if key in schema]
        yield parameter["name"], escape(", ".join(filter(None, described)))


_BOUNDS = (("at least", "minimum"), ("at most", "maximum"), ("default", "default"))


def _fields(body: Mapping[str, Any], description: Mapping[str, Any]) -> Iterator[str]:
    for kind, content in body.get("content", {}).items():
        schema = _resolved(content.get("schema", {}), description)
        fields = ", ".join(f"<code>{escape(name)}</code>" for name in schema.get("properties", {}))
        yield f"{escape(kind)}{': ' if fields else ''}{fields}"


def _responses(operation: Mapping[str, Any], description: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for status, response in operation["responses"].items():
        text = escape(response.get("description", ""))
        for kind, content in response.get("content", {}).items():
            example = content.get("example")
            schema = _resolved(content.get("schema", {}), description)
            if example is None and schema.get("examples"):
                example = schema["examples"][0]
            text += f" <code>{escape(kind)}</code>"
            if example is not None:
                text += f"<pre>{escape(json.dumps(example, indent=1, ensure_ascii=False))}</pre>"
        yield status, text


def _resolved(schema: Mapping[str, Any], description: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema, followed to where it is defined."""
    name = schema.get("$ref", "").rpartition("/")[2]
    return description["components"]["schemas"][name] if name else schema
