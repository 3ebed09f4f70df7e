"""Hooks of MkDocs, named in mkdocs.yml."""

import re


def on_page_content(html: str, **_: object) -> str:
    """Drop the roles of docstrings, such as ``:meth:``, from the Python API. What they name is code already."""
    return re.sub(r":(?:attr|class|data|func|meth|mod):(?=<code>)", "", html)


def on_post_template(output_content: str, **_: object) -> str:
    """Treat 404.html as any other page."""
    return on_post_page(output_content)


def on_post_page(output: str, **_: object) -> str:
    """Drop the one script that pages would load from the network.

    Browsers need it for the search where pages are read from the disk. ``make docs-serve`` has the search without it.
    """
    return re.sub(r'<script src="https://unpkg\.com/iframe-worker/shim"></script>', "", output)
