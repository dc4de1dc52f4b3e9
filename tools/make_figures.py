#!/usr/bin/env python
"""Draw the README's figure of the architecture and its badges: SVG files in docs/images.

    python tools/make_figures.py

The same text comes out everywhere; tests/tools/test_make_figures.py compares it with the files. All
text stands on a fill of its own and lines are of a middle grey, so that both light and dark pages
can show them.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from isda.files import write_text

__all__ = ["figures"]

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs/images"
FONT = "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"
INK, LINE = "#1f2328", "#7d8590"
IMAGE, FEATURES, TOKENS = "#e2e5e9", "#cfe4ff", "#e3dcff"
HEADS, PRODUCT, TRAINING = "#cdf0d6", "#ffe7b3", "#ffdcd7"

# What is true of the whole project: name, value, colour of the value.
BADGES = {
    "licence": ("licence", "Apache-2.0", "#1f6f3f"),
    "python": ("Python", "3.10 – 3.13", "#24588f"),
    "arxiv_isda": ("ISDA", "arXiv 2202.12251", "#9a3412"),
    "arxiv_istr": ("ISTR", "arXiv 2105.00637", "#9a3412"),
}


class Box(NamedTuple):
    """A part of the model: its corner, size, fill and lines of text, the first of them bold."""

    x: int
    y: int
    width: int
    height: int
    fill: str
    lines: tuple[str, ...]
    dashed: bool = False


BOXES = (
    Box(8, 8, 150, 56, IMAGE, ("image", "B × 3 × H × W")),
    Box(182, 8, 156, 56, FEATURES, ("backbone", "ResNet, Swin, ViT, …")),
    Box(362, 8, 150, 56, FEATURES, ("neck", "P2 – P6")),
    Box(182, 104, 156, 56, FEATURES, ("mask features", "of P2 – P5, at stride 2")),
    Box(362, 104, 150, 56, TOKENS, ("encoder", "tokens of P3 – P6")),
    Box(362, 198, 120, 56, TOKENS, ("query selection", "N best tokens")),
    Box(362, 292, 150, 56, TOKENS, ("decoder, 6 layers", "each refines boxes")),
    Box(182, 390, 156, 56, PRODUCT, ("product", "kernels · features")),
    Box(362, 382, 120, 72, HEADS, ("kernels", "position-aware:", "ellipse of the box")),
    Box(8, 490, 330, 56, IMAGE, ("instances: class, score, mask, box", "no proposals, no NMS")),
    Box(362, 490, 150, 56, HEADS, ("class scores", "N × K")),
    Box(
        8,
        198,
        150,
        150,
        TRAINING,
        (
            "in training",
            "Hungarian matching:",
            "one query for each",
            "ground truth",
            "focal, dice, L1",
            "and GIoU losses",
        ),
        dashed=True,
    ),
)
# Ends of straight lines; arrows point to the last.
ARROWS = (
    ((158, 36), (182, 36)),  # image to backbone
    ((338, 36), (362, 36)),  # backbone to neck
    ((437, 64), (437, 104)),  # neck to encoder
    ((400, 64), (400, 84), (260, 84), (260, 104)),  # neck to mask features
    ((422, 160), (422, 198)),  # encoder to query selection
    ((498, 160), (498, 292)),  # encoder to decoder
    ((422, 254), (422, 292)),  # query selection to decoder
    ((422, 348), (422, 382)),  # decoder to kernels
    ((498, 348), (498, 490)),  # decoder to class scores
    ((362, 418), (338, 418)),  # kernels to product
    ((260, 160), (260, 390)),  # mask features to product
    ((260, 446), (260, 490)),  # product to instances
    ((362, 518), (338, 518)),  # class scores to instances
)
COMPARED = ((83, 348), (83, 490))  # ground truth and predictions
DESCRIPTION = (
    "ISDA with boxes: backbone and neck give a feature pyramid. An encoder with deformable "
    "attention refines its tokens; the best of them become queries with boxes, which a decoder "
    "refines layer by layer. Each query gives class scores and a position-aware kernel with an "
    "ellipse around its box; the product of kernels and mask features is the masks. In training, "
    "Hungarian matching assigns one query to each ground truth. No proposals, no NMS."
)


def architecture() -> str:
    """The way from an image to instances, 520 pixels wide."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="520" height="554" viewBox="0 0 520 554" '
        f'role="img" font-family="{FONT}" font-size="14" text-anchor="middle">',
        "<title>Architecture of ISDA with boxes</title>",
        f"<desc>{DESCRIPTION}</desc>",
        '<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="5" markerHeight="5" '
        f'orient="auto-start-reverse"><path d="M0 0L8 4L0 8Z" fill="{LINE}"/></marker>',
        *(line(points, 'marker-end="url(#tip)"') for points in ARROWS),
        line(COMPARED, 'marker-start="url(#tip)" marker-end="url(#tip)" stroke-dasharray="5 4"'),
        *(drawn(box) for box in BOXES),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def line(points: Iterable[tuple[int, int]], style: str) -> str:
    text = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline points="{text}" fill="none" stroke="{LINE}" stroke-width="2" {style}/>'


def drawn(box: Box) -> str:
    dashes = ' stroke-dasharray="5 4"' if box.dashed else ""
    parts = [
        f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="7" '
        f'fill="{box.fill}" stroke="{LINE}"{dashes}/>'
    ]
    middle, spacing = box.x + box.width // 2, 20
    first = box.y + box.height // 2 - spacing * (len(box.lines) - 1) // 2 + 5
    for number, text in enumerate(box.lines):
        style = 'font-weight="600"' if number == 0 else 'font-size="13"'
        position = f'x="{middle}" y="{first + spacing * number}"'
        parts.append(f'<text {position} fill="{INK}" {style}>{text}</text>')
    return "\n".join(parts)


def badge(name: str, value: str, colour: str) -> str:
    """Two words on one line, 20 pixels high."""
    left, right = (round(6.3 * len(text)) + 12 for text in (name, value))
    middles = left / 2, left + right / 2
    texts = [
        f'<text x="{middle:g}" y="14">{text}</text>' for text, middle in zip((name, value), middles)
    ]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img">',
        f"<title>{name}: {value}</title>",
        f'<rect width="{left + right}" height="20" rx="4" fill="{colour}"/>',
        f'<path d="M4 0H{left}V20H4A4 4 0 0 1 0 16V4A4 4 0 0 1 4 0Z" fill="#4b5259"/>',
        f'<g fill="#ffffff" font-family="{FONT}" font-size="12" text-anchor="middle">',
        *texts,
        "</g></svg>",
    ]
    return "\n".join(parts) + "\n"


def figures() -> dict[str, str]:
    """Text of each file below ``docs/images``, by name."""
    badges = {f"badges/{name}.svg": badge(*words) for name, words in BADGES.items()}
    return {"isda_boxes_architecture.svg": architecture(), **badges}


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    for name, text in figures().items():
        path = IMAGES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
