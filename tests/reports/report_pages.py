"""What a report's HTML holds, and that it can do no harm."""

import re
from html.parser import HTMLParser

DATA = ("script", "application/json")  # never run: a script reads it as text


class Page(HTMLParser):
    """Tags with their attributes, and the text outside style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text, self.silent = "", False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.silent = tag in ("style", "script")

    def handle_endtag(self, tag):
        self.silent = False

    def handle_data(self, data):
        self.text += "" if self.silent else data + " "


def harmless(html: bytes) -> Page:
    """The page, which asks for nothing, runs one script only and draws no NaN."""
    page = Page(html.decode())
    tags = [tag for tag, own in page.tags if (tag, own.get("type")) != DATA]
    assert tags.count("script") == tags.count("style") == 1
    assert not {"img", "iframe", "object", "embed", "form", "base"} & set(tags)
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        for name in ("href", "src", "xlink:href"):
            assert re.match(r"#|data:,$|\./[\w%./-]+\.html$", attributes.get(name) or "#"), (
                tag,
                attributes,
            )
        for value in attributes.values():
            assert tag in ("td", "meta") or not re.search(r"\b(nan|inf)\b", value or ""), attributes
    policy = next(a["content"] for t, a in page.tags if "http-equiv" in a)
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    return page
