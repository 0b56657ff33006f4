"""MODE SENSE and MODE SELECT, on whatever pages a unit has. Spec: SPC-4 6.9 to 6.12, 7.5."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from vfio_user.devices.scsi.logical_unit import command, illegal, invalid_field, invalid_parameter
from vfio_user.devices.scsi.primary import PrimaryUnit
from vfio_user.devices.scsi.task import DataOut, Steps, Task
from vfio_user.hardware.scsi.cdb import Command
from vfio_user.hardware.scsi.codes import AdditionalSense
from vfio_user.hardware.scsi.codes import OperationCode as Op
from vfio_user.hardware.scsi.layout import Layout
from vfio_user.hardware.scsi.mode_pages import (
    ALL_PAGES,
    ALL_SUBPAGES,
    CONTROL,
    HEADER_6,
    HEADER_10,
    LONG_BLOCK_DESCRIPTOR,
    SHORT_BLOCK_DESCRIPTOR,
    ModePage,
    PageControl,
)

__all__ = ["ModeUnit"]

_PARAMETER_LIST_LENGTH_ERROR = AdditionalSense.PARAMETER_LIST_LENGTH_ERROR


class ModeUnit(PrimaryUnit):
    """A logical unit with mode pages.

    Attributes:
        mode_pages: those it has, in the order of their codes.
    """

    mode_pages: ClassVar[Sequence[ModePage]] = (CONTROL,)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._mode = {page.key: page.default for page in self.mode_pages}

    # What a kind of unit says besides; override.

    def block_descriptor(self, *, long_lba: bool) -> bytes:
        """Its block descriptor; nothing where it has none."""
        return b""

    def device_specific_parameter(self) -> int:
        """DEVICE-SPECIFIC PARAMETER of the header."""
        return 0

    def mode_value(self, page: ModePage, field: str) -> int:
        """A field's current value."""
        return page.layout.get(self._mode[page.key], field)

    def current_page(self, page: ModePage) -> bytes:
        """A page as it is now; override to show state in it."""
        return self._mode[page.key]

    def modes_changed(self, pages: Collection[tuple[int, int]]) -> Steps:
        """An initiator changed these pages; override to do what that takes, before the initiator has the status."""
        yield from ()
        return None

    def uses_descriptor_sense(self) -> bool:
        """D_SENSE of the control page."""
        return bool(self.mode_value(CONTROL, "d_sense"))

    def on_reset(self) -> None:
        """Pages are what they are by default again."""
        super().on_reset()
        self._mode = {page.key: page.default for page in self.mode_pages}

    # MODE SENSE.

    @command(Op.MODE_SENSE_6, Op.MODE_SENSE_10)
    def mode_sense(self, task: Task, cdb: Command) -> bytes:
        """MODE SENSE: header, block descriptor, pages."""
        if cdb.page_control == PageControl.SAVED:
            raise illegal(AdditionalSense.SAVING_PARAMETERS_NOT_SUPPORTED)
        pages = b"".join(self._asked_for(cdb))
        is_10 = cdb.operation_code == Op.MODE_SENSE_10
        long_lba = is_10 and bool(cdb.long_lba)
        blocks = b"" if cdb.disable_block_descriptors else self.block_descriptor(long_lba=long_lba)
        header = HEADER_10 if is_10 else HEADER_6
        values = {
            "data_length": header.length - header.fields["data_length"].end + len(blocks) + len(pages),
            "device_specific": self.device_specific_parameter(),
            "block_length": len(blocks),
        }
        if long_lba and blocks:
            values["long_lba"] = 1
        return bytes(header.pack(**values)) + blocks + pages

    def _asked_for(self, cdb: Command) -> Iterator[bytes]:
        if cdb.page == ALL_PAGES:
            if cdb.subpage not in (0, ALL_SUBPAGES):
                raise invalid_field(cdb, "subpage")
            found = [page for page in self.mode_pages if cdb.subpage or not page.subcode]
        elif not any(page.code == cdb.page for page in self.mode_pages):
            raise invalid_field(cdb, "page")
        else:
            found = [page for page in self.mode_pages if page.code == cdb.page]
            if cdb.subpage != ALL_SUBPAGES:
                found = [page for page in found if page.subcode == cdb.subpage]
            if not found:
                raise invalid_field(cdb, "subpage")
        for page in found:
            match cdb.page_control:
                case PageControl.CHANGEABLE:
                    yield page.changeable
                case PageControl.DEFAULT:
                    yield page.default
                case _:
                    yield self.current_page(page)

    # MODE SELECT.

    @command(Op.MODE_SELECT_6, Op.MODE_SELECT_10)
    def mode_select(self, task: Task, cdb: Command) -> Steps:
        """MODE SELECT: all pages are found good, then all are taken over. The other initiators are told."""
        if not cdb.page_format:
            raise invalid_field(cdb, "page_format")
        if cdb.save_pages:
            raise invalid_field(cdb, "save_pages")
        if not cdb.parameter_list_length:
            return None
        data: memoryview = yield DataOut(cdb.parameter_list_length)
        is_10 = cdb.operation_code == Op.MODE_SELECT_10
        changed = self._read_pages(bytes(data), HEADER_10 if is_10 else HEADER_6)
        changed = {key: page for key, page in changed.items() if page != self._mode[key]}
        if changed:
            self._mode.update(changed)
            self.attention(AdditionalSense.MODE_PARAMETERS_CHANGED, but=task.initiator)
            yield from self.modes_changed(changed)
        return None

    def _read_pages(self, data: bytes, header: Layout) -> dict[tuple[int, int], bytes]:
        """Reads a parameter list.

        Raises:
            CommandFailed: it is cut off, or changes what cannot be.
        """
        if len(data) < header.length:
            raise illegal(_PARAMETER_LIST_LENGTH_ERROR)
        long_lba = "long_lba" in header.fields and bool(header.get(data, "long_lba"))
        length = header.get(data, "block_length")
        offset = header.length + length
        if len(data) < offset:
            raise illegal(_PARAMETER_LIST_LENGTH_ERROR)
        if length:
            self._check_block_descriptor(data, header, length, long_lba=long_lba)
        pages: dict[tuple[int, int], bytes] = {}
        while offset < len(data):
            page, values = self._read_page(data, offset)
            pages[page.key] = values
            offset += page.length
        return pages

    def _check_block_descriptor(self, data: bytes, header: Layout, length: int, *, long_lba: bool) -> None:
        """Nothing in it can be changed: the medium is as large as it is."""
        mine = self.block_descriptor(long_lba=long_lba)
        if length != len(mine):
            raise invalid_parameter(header.fields["block_length"].byte)
        layout = LONG_BLOCK_DESCRIPTOR if long_lba else SHORT_BLOCK_DESCRIPTOR
        given = data[header.length : header.length + length]
        every = (1 << layout.fields["blocks"].width) - 1
        if layout.get(given, "blocks") not in (0, every, layout.get(mine, "blocks")):
            raise invalid_parameter(header.length + layout.fields["blocks"].byte)
        if layout.get(given, "block_size") != layout.get(mine, "block_size"):
            raise invalid_parameter(header.length + layout.fields["block_size"].byte)

    def _read_page(self, data: bytes, offset: int) -> tuple[ModePage, bytes]:
        if offset + 2 > len(data):
            raise illegal(_PARAMETER_LIST_LENGTH_ERROR)
        code, subcode = data[offset] & 0x3F, data[offset + 1] if data[offset] & 0x40 else 0
        page = next((each for each in self.mode_pages if each.key == (code, subcode)), None)
        if page is None:
            raise invalid_parameter(offset, 5)
        given = data[offset : offset + page.length]
        head = page.header_length
        # PS is of no meaning in MODE SELECT; initiators send back what they have read.
        if given[1:head] != page.default[1 : 1 + len(given[1:head])]:
            raise invalid_parameter(offset + (2 if page.subcode else 1))
        if len(given) < page.length:
            raise illegal(_PARAMETER_LIST_LENGTH_ERROR)
        current, mask = self.current_page(page), page.mask
        for index in range(head, page.length):
            wrong = (given[index] ^ current[index]) & ~mask[index]
            if wrong:
                raise invalid_parameter(offset + index, wrong.bit_length() - 1)
        return page, current[:head] + given[head:]

    # Saving.

    def save(self) -> dict[str, Any]:
        """With its pages."""
        return {**super().save(), "mode": {f"{code}.{sub}": page for (code, sub), page in self._mode.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        """With its pages, as far as this version has them."""
        super().load(state)
        for page in self.mode_pages:
            saved = state["mode"].get(f"{page.code}.{page.subcode}", page.default)
            self._mode[page.key] = bytes(saved) if len(saved) == page.length else page.default
