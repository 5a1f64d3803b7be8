"""Run the notebooks and put them into the site as pages: a notebook that fails ends the build."""

from __future__ import annotations

import html
import os
import re
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient
from traitlets.config import Config


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Replace each notebook by a page of Markdown with what its cells print and draw."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        notebook = nbformat.read(file.abs_src_path, as_version=4)
        os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # its advice would be on every build
        # Sockets in files rather than on TCP ports, which anybody on the machine could read.
        sockets = Config(KernelManager={"transport": "ipc"})
        NotebookClient(notebook, config=sockets, kernel_name="python3", timeout=300).execute()
        page = "\n\n".join(map(_cell, notebook.cells))
        files.remove(file)
        files.append(File.generated(config, str(Path(file.src_uri).with_suffix(".md")), content=page))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to a notebook lead to its page."""
    return re.sub(r"(\([\w./-]+)\.ipynb\)", r"\1.md)", markdown)


def _cell(cell: Any) -> str:
    if cell.cell_type == "markdown":
        return cell.source
    parts = [f"```python\n{cell.source}\n```", *map(_output, cell.outputs)]
    return "\n\n".join(part for part in parts if part)


def _output(output: Any) -> str:
    if output.output_type == "stream":
        return f"```text\n{output.text.rstrip()}\n```" if output.name == "stdout" else ""
    if "image/png" in output.data:
        return f'<img alt="" src="data:image/png;base64,{output.data["image/png"].replace(chr(10), "")}">'
    if output.output_type == "display_data":  # progress bars
        return ""
    return output.data.get("text/html") or f"<pre>{html.escape(output.data['text/plain'])}</pre>"
