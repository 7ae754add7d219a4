"""HTML pages that need no other file: captioned pictures in a grid, text, what a room adds."""

from __future__ import annotations

import html


def page(title: str, text: str, body: str, style: str = "") -> str:
    """A page.

    Args:
      title: plain text.
      text: plain text, shown under the title as it is.
      body: HTML; ``<main>`` is a grid, of ``<figure>`` for example.
      style: more rules of CSS.
    """
    title = html.escape(title)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}{style}</style>
</head>
<body>
<h1>{title}</h1>
<pre>{html.escape(text)}</pre>
{body}
</body>
</html>
"""


_STYLE = """
body { margin: 1.5rem; font: 15px/1.4 system-ui, sans-serif; }
pre { overflow-x: auto; }
main { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
figure { margin: 0; overflow-wrap: anywhere; font-size: .8rem; }
ul { margin: .2rem 0; padding-left: 1rem; }
"""
