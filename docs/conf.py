"""Sphinx: `make docs` builds the pages into docs/_build."""

project = "mpsearch"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "mpsearch"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_ivar = True
nitpicky = False
suppress_warnings = ["myst.header", "ref.python"]
