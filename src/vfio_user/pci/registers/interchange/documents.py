"""Documents of a register block: Markdown for a repository, and one self-contained HTML page.

Both say everything a description has, so neither returns notes about anything but hooks, which are code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from vfio_user.pci.registers.block import RegisterBlock
from vfio_user.pci.registers.description import RegisterDescription
from vfio_user.pci.registers.interchange.notes import Exported
from vfio_user.pci.registers.interchange.remarks import (
    access_words,
    field_remarks,
    hook_notes,
    paragraphs,
    register_remarks,
)

__all__ = ["to_html", "to_markdown"]


def to_markdown(block: type[RegisterBlock], *, title: str = "") -> Exported:
    """Writes a Markdown document: a table of registers, then one of fields for each that has any.

    Args:
        block: the class.
        title: the heading; the name of the class when not given.
    """
    descriptions = block.describe()
    lines = [
        f"# {title or block.__name__}",
        "",
        *_paragraph(" ".join(paragraphs(block))),
        f"{block.size:#x} bytes, {block.byteorder}-endian.",
        "",
    ]
    lines += ["| offset | register | width | access | reset | |", "|---|---|---|---|---|---|"]
    for item in descriptions:
        register = item.register
        cells = [_place(item), f"`{item.name}`", str(register.width), register.access_names, f"{register.reset:#x}"]
        lines.append(f"| {' | '.join(map(_cell, [*cells, '; '.join(register_remarks(item))]))} |")
    for item in descriptions:
        if not item.register.fields or item.alias_of:
            continue
        lines += ["", f"## {item.name}", "", *_paragraph(item.register.doc)]
        lines += ["| bits | field | access | reset | |", "|---|---|---|---|---|"]
        lines += [f"| {' | '.join(map(_cell, row))} |" for row in _field_rows(item)]
    return Exported("\n".join(lines) + "\n", tuple(hook_notes(block)))


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; width: 100%; margin: 1em 0; }
th, td { border-bottom: 1px solid #ddd; padding: .3em .6em; text-align: left; vertical-align: top; }
td:first-child, code { font-family: ui-monospace, monospace; white-space: nowrap; }
.bits td { border: 1px solid #999; text-align: center; font-size: 12px; white-space: normal; overflow-wrap: anywhere; }
.bits .reserved { background: #eee; }
@media (prefers-color-scheme: dark) {
  body { background: #181818; color: #ddd; } a { color: #8ab4f8; } .bits .reserved { background: #333; }
}
""".strip()


def to_html(*blocks: type[RegisterBlock], titles: Sequence[str] = ()) -> Exported:
    """Writes one HTML page that needs nothing else: tables of registers, then each register with its bits drawn.

    Args:
        blocks: the classes.
        titles: a heading for each; their names when not given.
    """
    headings = [escape(title) for title in titles or [block.__name__ for block in blocks]]
    page = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{", ".join(headings)}</title>',
        f"<style>{_STYLE}</style></head><body>",
    ]
    first = 0
    for block, heading in zip(blocks, headings, strict=True):
        page.append(f"<h1>{heading}</h1>")
        page += _html_block(block, first)
        first += len(block.describe())
    page.append("</body></html>")
    return Exported("\n".join(page) + "\n", tuple(note for block in blocks for note in hook_notes(block)))


def _html_block(block: type[RegisterBlock], first: int) -> Iterator[str]:
    """One block, below its heading; ``first`` is the number of its first register in the page."""
    descriptions = block.describe()
    yield from (f"<p>{escape(text)}</p>" for text in paragraphs(block))
    yield f"<p>{block.size:#x} bytes, {block.byteorder}-endian.</p>"
    yield "<table><tr><th>offset<th>register<th>width<th>access<th>reset<th></tr>"
    for number, item in enumerate(descriptions, first):
        register = item.register
        link = f'<a href="#r{number}"><code>{escape(item.name)}</code></a>'
        cells = [escape(_place(item)), link, str(register.width), escape(register.access_names), f"{register.reset:#x}"]
        cells.append(escape("; ".join(register_remarks(item))))
        yield "<tr>" + "".join(f"<td>{cell}" for cell in cells) + "</tr>"
    yield "</table>"
    for number, item in enumerate(descriptions, first):
        yield f'<h2 id="r{number}">{escape(item.name)}</h2>'
        yield from (f"<p>{escape(text)}</p>" for text in _paragraph(item.register.doc) if text)
        if item.register.fields:
            yield _drawing(item)
            yield "<table><tr><th>bits<th>field<th>access<th>reset<th></tr>"
            for row in _field_rows(item):
                yield "<tr>" + "".join(f"<td>{escape(cell)}" for cell in row) + "</tr>"
            yield "</table>"


def _drawing(item: RegisterDescription) -> str:
    """The bits of a register, highest first, in rows of at most 16."""
    register = item.register
    owners = [
        next((field.name for field in register.fields if field.mask >> bit & 1), "") for bit in range(register.width)
    ]
    rows = []
    for top in range(register.width, 0, -16):
        bits = range(top - 1, max(top - 17, -1), -1)
        numbers = "".join(f"<td>{bit}" for bit in bits)
        cells, run = [], 0
        for bit in bits:
            run += 1
            if bit == bits[-1] or owners[bit - 1] != owners[bit]:
                kind = "" if owners[bit] else ' class="reserved"'
                cells.append(f'<td colspan="{run}"{kind}>{escape(owners[bit])}')
                run = 0
        rows.append(f"<tr>{numbers}</tr><tr>{''.join(cells)}</tr>")
    return f'<table class="bits">{"".join(rows)}</table>'


def _field_rows(item: RegisterDescription) -> Iterator[list[str]]:
    register = item.register
    for field in register.bits:
        reset = (register.reset & field.mask) >> field.lsb
        yield [
            field.bits,
            field.name,
            access_words(field.access or register.access),
            f"{reset:#x}",
            "; ".join(field_remarks(field)),
        ]


def _place(item: RegisterDescription) -> str:
    strides = "".join(f" + {stride:#x} * i" for _, stride in item.dimensions)
    return f"{item.offset:#x}{strides}"


def _paragraph(text: str | None) -> list[str]:
    return [" ".join(text.split()), ""] if text else []


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
