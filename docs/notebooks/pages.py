"""Hook of MkDocs: a notebook as a page of the site, with the outputs that its file keeps."""

from typing import Any

import nbformat
from mkdocs.structure.files import File, Files


class NotebookPage(File):
    """Page that MkDocs makes of a notebook in place of copying it."""

    def is_documentation_page(self) -> bool:
        """Whether MkDocs makes a page of it."""
        return True

    @property
    def content_string(self) -> str:
        """Its cells and their outputs as Markdown."""
        parts = []
        for cell in nbformat.reads(super().content_string, as_version=4).cells:
            parts.append(cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```")
            parts += [_shown(output) for output in cell.get("outputs", [])]
        return "\n\n".join(parts)


def on_files(files: Files, config: Any) -> Files:
    """Files of the site with a page for each notebook."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        files.append(NotebookPage(file.src_uri, config.docs_dir, config.site_dir, config.use_directory_urls))
    return files


def _shown(output: nbformat.NotebookNode) -> str:
    picture = output.get("data", {}).get("image/png")
    if picture is not None:
        return f"![Figure drawn by the cell above](data:image/png;base64,{''.join(picture.split())})"
    text = output.text if output.output_type == "stream" else output.data["text/plain"]
    return f"```text\n{text.rstrip()}\n```"
