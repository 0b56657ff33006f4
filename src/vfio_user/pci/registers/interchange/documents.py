"""Documents of a register block: Markdown for a repository, and one self-contained HTML page.

Both say everything a description has, so neither returns notes about anything but hooks, which are code.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from vfio_user.pci.registers.block import RegisterBlock
from vfio_user.pci.registers.description import RegisterDescription
from vfio_user.pci.registers.interchange.notes import Exported, Note
from vfio_user.pci.registers.policies import Access
from vfio_user.pci.registers.reset import ResetKind

__all__ = ["to_html", "to_markdown"]


def to_markdown(block: type[RegisterBlock]) -> Exported:
    """Writes a Markdown document: a table of registers, then one of fields for each that has any."""
    descriptions = block.describe()
    lines = [
        f"# {block.__name__}",
        "",
        *_paragraph(block.__doc__),
        f"{block.size:#x} bytes, {block.byteorder}-endian.",
        "",
    ]
    lines += ["| offset | register | width | access | reset | |", "|---|---|---|---|---|---|"]
    for item in descriptions:
        register = item.register
        cells = [_place(item), f"`{item.name}`", str(register.width), register.access_names, f"{register.reset:#x}"]
        lines.append(f"| {' | '.join(map(_cell, [*cells, _remarks(item)]))} |")
    for item in descriptions:
        if not item.register.fields or item.alias_of:
            continue
        lines += ["", f"## {item.name}", "", *_paragraph(item.register.doc)]
        lines += ["| bits | field | access | reset | |", "|---|---|---|---|---|"]
        lines += [f"| {' | '.join(map(_cell, row))} |" for row in _field_rows(item)]
    return Exported("\n".join(lines) + "\n", tuple(_notes(block)))


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


def to_html(block: type[RegisterBlock]) -> Exported:
    """Writes one HTML page that needs nothing else: a table of registers, then each with its bits drawn."""
    descriptions = block.describe()
    title = escape(block.__name__)
    page = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head><body>',
        f"<h1>{title}</h1>",
        *(f"<p>{escape(text)}</p>" for text in _paragraph(block.__doc__) if text),
        f"<p>{block.size:#x} bytes, {block.byteorder}-endian.</p>",
        "<table><tr><th>offset<th>register<th>width<th>access<th>reset<th></tr>",
    ]
    for number, item in enumerate(descriptions):
        register = item.register
        link = f'<a href="#r{number}"><code>{escape(item.name)}</code></a>'
        cells = [escape(_place(item)), link, str(register.width), escape(register.access_names), f"{register.reset:#x}"]
        page.append("<tr>" + "".join(f"<td>{cell}" for cell in [*cells, escape(_remarks(item))]) + "</tr>")
    page.append("</table>")
    for number, item in enumerate(descriptions):
        page.append(f'<h2 id="r{number}">{escape(item.name)}</h2>')
        page += [f"<p>{escape(text)}</p>" for text in _paragraph(item.register.doc) if text]
        if item.register.fields:
            page += [_drawing(item), "<table><tr><th>bits<th>field<th>access<th>reset<th></tr>"]
            page += ["<tr>" + "".join(f"<td>{escape(cell)}" for cell in row) + "</tr>" for row in _field_rows(item)]
            page.append("</table>")
    page.append("</body></html>")
    return Exported("\n".join(page) + "\n", tuple(_notes(block)))


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
        remarks = [" ".join(field.doc.split())] if field.doc else []
        remarks += [f"{value} = {meaning}" for value, meaning in field.values.items()]
        if field.sticky:
            remarks.append(f"sticky over {_kinds(field.sticky)}")
        reset = (register.reset & field.mask) >> field.lsb
        yield [field.bits, field.name, _policy(field.access or register.access), f"{reset:#x}", "; ".join(remarks)]


def _policy(access: Access) -> str:
    known = {"RW", "RO", "WO"}
    return (
        access.name
        if access.name in known
        else f"{access.name} (write: {access.write.value}, read: {access.read.value})"
    )


def _place(item: RegisterDescription) -> str:
    strides = "".join(f" + {stride:#x} * i" for _, stride in item.dimensions)
    return f"{item.offset:#x}{strides}"


def _remarks(item: RegisterDescription) -> str:
    register = item.register
    remarks = [" ".join(register.doc.split())] if register.doc else []
    if item.alias_of:
        remarks.append(f"alias of {item.alias_of}")
    for selector, values in item.when:
        remarks.append(f"while {selector} = {' or '.join(map(str, sorted(values)))}")
    power_on = register.resets[ResetKind.POWER_ON][1]
    for kind, (kept, value) in register.resets.items():
        if not kept and value != power_on:
            remarks.append(f"{value:#x} after {kind.value}")
    if register.sticky:
        remarks.append(f"sticky over {_kinds(register.sticky)}")
    return "; ".join(remarks)


def _kinds(kinds: frozenset[ResetKind]) -> str:
    return ", ".join(kind.value for kind in ResetKind if kind in kinds)


def _paragraph(text: str | None) -> list[str]:
    return [" ".join(text.split()), ""] if text else []


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _notes(block: type[RegisterBlock]) -> Iterator[Note]:
    for hook in block._hooks_of_class:
        yield Note(hook.path, f"its {hook.kind.value} hook {hook.name} ({hook.location}) is code: describe it in doc=")
