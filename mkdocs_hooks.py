"""Pages of the site that lie outside docs/: the README and its like, and the notebooks with their output."""

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent
PROJECT = {name: f"project/{name.lower()}" for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")}
NOTEBOOKS = {f"examples/{path.name}": f"notebooks/{path.stem}.md" for path in (ROOT / "examples").glob("*.ipynb")}
ELSEWHERE = {**PROJECT, **NOTEBOOKS}  # path in the repository -> page of the site


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made here."""
    for source, page in ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        content = notebook_as_markdown(json.loads(text)) if source in NOTEBOOKS else text
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as they are in the repository become links within the site."""
    there = page.file.src_uri
    source = next((path for path, made in ELSEWHERE.items() if made == there), f"docs/{there}")
    return re.sub(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)", lambda found: _moved(found, source, there), markdown)


def _moved(found: re.Match[str], source: str, there: str) -> str:
    """A link of a file of the repository, seen from the page that the file has become."""
    parts: list[str] = [*source.split("/")[:-1]]
    for part in found[1].split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part != ".":
            parts.append(part)
    target = "/".join(parts)
    page = ELSEWHERE.get(target, target.removeprefix("docs/"))
    up = "../" * there.count("/")
    return f"]({up}{page}{found[2] or ''})"


def notebook_as_markdown(notebook: dict[str, Any]) -> str:
    """Cells in their order, what they printed below them."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [_output(output) for output in cell["outputs"]]
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f"![What the cell draws](data:image/png;base64,{''.join(data['image/png']).strip()})"
    if "text/html" in data:
        table = re.sub(r"<style.*?</style>", "", "".join(data["text/html"]), flags=re.DOTALL)
        return re.sub(r"\n\s*", "\n", table.replace('<table border="1" class="dataframe">', "<table>"))
    text = "".join(output.get("text") or data.get("text/plain", ""))
    return f"```text\n{text.rstrip()}\n```"
