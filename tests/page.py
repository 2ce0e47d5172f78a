"""What a page of a report shows to a reader, taken from its HTML."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """What a page shows, by section heading (`""` before the first), its tags, and the addresses that it mentions."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self._inside: list[str] = []
        self._parts: list[tuple[str, list[str]]] = [("", [])]
        self.feed(html)
        self.sections = {heading: " ".join(" ".join(texts).split()) for heading, texts in self._parts}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]
        if tag in ("h2", "style", "script"):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if "h2" in self._inside:
            self._parts.append((data, []))
        elif not self._inside:
            self._parts[-1][1].append(data)
