"""Markdown and HTML: everything a description has is in them, and nothing breaks them."""

from __future__ import annotations

from html.parser import HTMLParser

from vfio_user.pci.registers import (
    RW1C,
    RW1S,
    Alias,
    Field,
    Register,
    RegisterBlock,
    RegisterFile,
    ResetKind,
    on_write,
)
from vfio_user.pci.registers.interchange import to_html, to_markdown


class Channel(RegisterBlock):
    control = Register(0x0)


class Example(RegisterBlock):
    """A block | with <everything> in it."""

    status = Register(
        0x0,
        fields=[
            Field("mode", (5, 4), values={0: "off", 2: "on"}, reset=2, doc="how | it <runs>"),
            Field("done", 31, access=RW1C, sticky=[ResetKind.FLR]),
        ],
        doc="what happened",
    )
    status_set = Alias(status, 0x4, access=RW1S)
    page = Register(0x8, width=8, reset={ResetKind.POWER_ON: 1, ResetKind.FLR: 2}, sticky=[ResetKind.DEVICE])
    one = Register(0xC, when={"page": (1, 3)})
    channels = RegisterFile(Channel, 0x10, count=4, stride=8)

    @on_write("page")
    def turn(self) -> None: ...


def test_markdown_has_all_of_it() -> None:
    document = to_markdown(Example)
    assert document.text == (
        "# Example\n"
        "\n"
        "A block | with <everything> in it.\n"
        "\n"
        "0x2c bytes, little-endian.\n"
        "\n"
        "| offset | register | width | access | reset | |\n"
        "|---|---|---|---|---|---|\n"
        "| 0x0 | `status` | 32 | RW RW1C | 0x20 | what happened |\n"
        "| 0x4 | `status_set` | 32 | RW1S | 0x20 | alias of status |\n"
        "| 0x8 | `page` | 8 | RW | 0x1 | 0x2 after flr; sticky over device |\n"
        "| 0xc | `one` | 32 | RW | 0x0 | while page = 1 or 3 |\n"
        "| 0x10 + 0x8 * i | `channels[4].control` | 32 | RW | 0x0 |  |\n"
        "\n"
        "## status\n"
        "\n"
        "what happened\n"
        "\n"
        "| bits | field | access | reset | |\n"
        "|---|---|---|---|---|\n"
        "| 5:4 | mode | RW | 0x2 | how \\| it <runs>; 0 = off; 2 = on |\n"
        "| 31 | done | RW1C (write: 1 clears, read: none) | 0x0 | sticky over flr |\n"
    )
    assert [note.where for note in document.notes] == ["page"]
    assert "its on_write hook turn" in document.notes[0].what
    assert str(document.notes[0]).startswith("page: its on_write hook turn (")


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("href", "src"):
                self.links.append(str(value))
            if name == "id":
                self.ids.append(str(value))

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def test_the_page_needs_nothing_else_and_escapes_what_it_shows() -> None:
    document = to_html(Example)
    page = _Page()
    page.feed(document.text)
    assert page.links == [f"#r{number}" for number in range(5)]
    assert page.ids == ["r0", "r1", "r2", "r3", "r4"]
    assert not {"script", "link", "img", "everything", "runs"} & set(page.tags)
    assert "how | it <runs>; 0 = off; 2 = on" in page.words
    assert "A block | with <everything> in it." in page.words


def test_bits_are_drawn_highest_first_in_rows_of_sixteen() -> None:
    drawing = to_html(Example).text.split('<table class="bits">')[1].split("</table>")[0]
    _, numbers, high, _, low = drawing.split("<tr>")
    assert high.startswith('<td colspan="1">done<td colspan="15" class="reserved"></tr>')
    assert low.startswith(
        '<td colspan="10" class="reserved"><td colspan="2">mode<td colspan="4" class="reserved"></tr>'
    )
    assert numbers.startswith("<td>31<td>30")
