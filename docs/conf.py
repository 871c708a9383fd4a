"""Sphinx configuration; `make docs` builds the site from the repository's Markdown pages.

The source folder is the repository's root, so a link in a page works here and in a file browser.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from figures import write_task_pictures
from reference_pages import convert_fences, write_options, write_tasks

project = "mtxl_rl"
copyright = "the mtxl_rl developers"  # noqa: A001 - Sphinx's name
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "*.md"]
exclude_patterns = ["**/.venv", "runs", "build"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
default_role = "literal"  # Docstrings have single backquotes.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_mock_imports = ["envpool", "ray"]  # ray needs another gymnasium.
linkcheck_anchors = False  # GitHub and others make theirs in the browser.
linkcheck_timeout = 30
html_theme = "furo"
html_title = "mtxl_rl"

generated = Path(__file__).parent / "generated"
shutil.rmtree(generated, ignore_errors=True)  # A page of a task that was removed or renamed.
write_options(generated)
write_tasks(generated / "tasks")
write_task_pictures(generated / "tasks")


def setup(app: Any) -> None:  # noqa: ANN401
    """Convert the docstrings' examples, which are Markdown."""
    app.connect("autodoc-process-docstring", lambda *arguments: convert_fences(arguments[-1]))
