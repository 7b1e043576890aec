# Copyright 2026 The hf_frozen_llm authors. Licensed under the Apache License, Version 2.0.
"""A model card as an HTML page that looks like the one on the Hub."""

import html
from pathlib import Path

import yaml


STYLE = """
body { margin: 0; color: #111827; background: #fff; font: 16px/1.6 system-ui, sans-serif; }
main { max-width: 50rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }
header span { display: inline-block; margin: 0 .4rem .4rem 0; padding: .1rem .5rem; border: 1px solid #d1d5db;
  border-radius: .5rem; font-size: .85rem; }
h1, h2, h3 { line-height: 1.3; } h2 { margin-top: 2rem; border-bottom: 1px solid #e5e7eb; }
pre { padding: .8rem; overflow-x: auto; background: #f3f4f6; border-radius: .5rem; font-size: .85rem; }
code { font-size: .9em; }
.table, details { margin: 1rem 0; } .table { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .6rem; border: 1px solid #e5e7eb; } thead th { background: #f9fafb; }
thead th:empty { padding: 0; border: 0; } td[style*=right] { white-space: nowrap; }
td:nth-child(2):last-child { min-width: 5rem; overflow-wrap: anywhere; }
td:nth-child(n+4):last-child { min-width: 7rem; }
img { max-width: 100%; height: auto; } summary { cursor: pointer; }
@media (max-width: 40rem) { body { font-size: 15px; } th, td { padding: .25rem .4rem; } }
@media (prefers-color-scheme: dark) {
  body { color: #e5e7eb; background: #0b0f19; } pre, thead th { background: #1f2937; }
  th, td, h2, header span { border-color: #374151; } a { color: #93c5fd; } img { background: #fff; }
}
"""


def write_page(card: Path) -> Path:
    """
    Write the HTML page of a model card beside it.

    Args:
        card (`Path`): the card, `README.md`.

    Returns:
        `Path`: the page, `README.html`.

    Raises:
        `ImportError`: without markdown-it-py.
    """
    try:
        from markdown_it import MarkdownIt
    except ImportError as error:
        raise ImportError("The page needs markdown-it-py: pip install 'hf_frozen_llm[cards]'") from error
    _, metadata, text = card.read_text(encoding="utf-8").split("---\n", 2)
    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    body = body.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")
    facts = yaml.safe_load(metadata)
    labels = []
    for name in ("pipeline_tag", "library_name", "base_model", "datasets", "license", "llm_license", "tags"):
        values = facts.get(name) or []
        shown = {
            "datasets": "data: ",
            "base_model": "base model: ",
            "license": "licence: ",
            "llm_license": "licence of the LLM: ",
        }
        labels += [shown.get(name, "") + str(value) for value in (values if isinstance(values, list) else [values])]
    spans = "".join(f"<span>{html.escape(label)}</span>" for label in dict.fromkeys(labels))
    title = html.escape(text.strip().partition("\n")[0].removeprefix("# "))
    page = card.with_suffix(".html")
    page.write_text(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
        f"<style>{STYLE}</style></head>\n<body><main><header>{spans}</header>\n{body}</main></body></html>\n",
        encoding="utf-8",
    )
    return page
