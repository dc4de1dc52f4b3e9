"""HTML without templates: text is escaped unless it is marked as HTML already."""

import html
from collections.abc import Iterable, Sequence

from isda.console import printable_lines

__all__ = ["Html", "details", "figure", "join", "listing", "paragraph", "section", "table", "tag"]

_VOID = {"br", "hr", "image", "img", "line", "meta", "path", "rect", "circle", "polyline", "use"}


class Html(str):
    """Text that is HTML and is taken as it is; any other text is escaped by :func:`tag`."""


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element.

    Args:
        children: ``Html``, or anything else, of which the text is shown; None is left out.
        attributes: a trailing underscore is dropped (``class_``), others become hyphens
            (``stroke_width``); None and False are left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(value)}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID and not children:
        return Html(f"<{name}{written}/>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Html:
    """Elements and texts one after the other; texts are escaped."""
    return Html(
        "".join(
            child if isinstance(child, Html) else _escaped(child)
            for child in children
            if child is not None
        )
    )


def _escaped(value: object) -> str:
    return html.escape(printable_lines(value))


def section(title: str, *children: object, anchor: str) -> Html:
    """A chapter of the page."""
    return tag("section", tag("h2", title), *children, id=anchor)


def paragraph(*children: object, class_: str | None = None) -> Html:
    """A paragraph of texts and elements."""
    return tag("p", *children, class_=class_)


def figure(title: str, content: object, note: object | None = None) -> Html:
    """Something drawn under its title, and a note below it."""
    caption = tag("figcaption", note) if note else None
    return tag("figure", tag("h3", title), content, caption)


def details(summary: object, *children: object, opened: bool = False) -> Html:
    """Something folded away."""
    return tag(
        "details", tag("summary", summary), *children, **({"open": "open"} if opened else {})
    )


def listing(items: Iterable[object]) -> Html:
    """A list with bullets."""
    return tag("ul", *(tag("li", item) for item in items))


def table(
    header: Sequence[object], rows: Iterable[Sequence[object]], *, numbers: Iterable[int] = ()
) -> Html:
    """A table that scrolls in itself where the screen is too narrow.

    Args:
        header: titles of the columns.
        rows: cells; the first one of each is the row's title.
        numbers: indices of the columns that are aligned to the right.
    """
    right = set(numbers)

    def style(column: int) -> str | None:
        return "number" if column in right else None

    head = tag("tr", *(tag("th", title, class_=style(i)) for i, title in enumerate(header)))
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row", class_=style(0)),
            *(tag("td", cell, class_=style(i)) for i, cell in enumerate(row[1:], start=1)),
        )
        for row in rows
    ]
    return tag(
        "div", tag("table", tag("thead", head), tag("tbody", *body)), class_="wide", tabindex="0"
    )
