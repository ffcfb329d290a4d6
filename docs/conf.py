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

#: What axe finds serious in pages as Sphinx and its theme make them: headings without a level, and
#: regions that scroll and that a keyboard cannot reach.
_ACCESSIBLE = {
    '<p class="caption" role="heading">': '<p class="caption" role="heading" aria-level="2">',
    "<pre>": '<pre tabindex="0">',
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
}


def _accessible(app, page, template, context, doctree):
    for part in ("body", "furo_navigation_tree"):
        for found, better in _ACCESSIBLE.items():
            context[part] = (context.get(part) or "").replace(found, better)


def setup(app):
    app.connect("html-page-context", _accessible, priority=900)  # after the theme's own
