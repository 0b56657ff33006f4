"""How a demonstration is told: a heading, and below it lines that say who did or saw what."""

from __future__ import annotations

from collections.abc import Iterable

from vfio_user.cli.output import Style, columns

__all__ = ["Report"]

_NEXT = (
    ("vfio-user devices", "what there is to plug in, and its options"),
    ("vfio-user boot --device edu", "a shell in a guest that has the device"),
    ("vfio-user serve edu -v", "for your own QEMU, with every message shown"),
    ("vfio-user serve my_device.py", "a device of your own"),
)


class Report:
    """Prints sections."""

    def __init__(self) -> None:
        self.style = Style()

    def title(self, text: str) -> None:
        """What all of it is about."""
        print(self.style.bold(text), flush=True)

    def heading(self, text: str) -> None:
        """Begins a section."""
        print(f"\n{self.style.bold(text)}", flush=True)

    def line(self, side: str, what: str, result: str = "") -> None:
        """One thing that happened.

        Args:
            side: who did or saw it.
            what: what.
            result: what came of it, in a column of its own.
        """
        print(f"  {self.style.dim(f'{side:<6}')}  {what:<46}  {result}".rstrip(), flush=True)

    def guest(self, what: str, result: str = "") -> None:
        """Something the guest did or saw."""
        self.line("guest", what, result)

    def python(self, what: str, result: str = "") -> None:
        """Something the device's code did or has."""
        self.line("Python", what, result)

    def lines(self, lines: Iterable[str]) -> None:
        """Lines as they are."""
        print("\n".join(lines), flush=True)

    def end(self, seconds: float) -> None:
        """What one may do now, and how long this took."""
        self.heading("What to try next")
        self.lines([*columns(_NEXT, "  "), "", self.style.dim(f"done in {seconds:.0f} s")])
