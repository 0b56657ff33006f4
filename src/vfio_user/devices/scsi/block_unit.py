"""``BlockUnit``: a logical unit with a medium of blocks, and all that reads it. Spec: SBC-3 clauses 4 and 5.

A ``Backend`` holds the blocks. Where it may block, what it does is a step of work, for the unit's workers; large
transfers go in pieces. The medium can be taken out of a removable unit, and put in, by the initiator (START STOP UNIT)
or by whoever stands before the drive (``insert``, ``remove``).
"""

from __future__ import annotations

import errno
import hashlib
import struct
from collections.abc import Callable, Generator, Mapping
from typing import Any, ClassVar

from vfio_user.backends import Backend
from vfio_user.devices.scsi.logical_unit import command, failed, illegal, invalid_field
from vfio_user.devices.scsi.reservations import ReservableUnit
from vfio_user.devices.scsi.task import Buffer, DataIn, DataOut, Step, Steps, StoredDataIn, Task, Work
from vfio_user.hardware.scsi.cdb import Command, ServiceAction
from vfio_user.hardware.scsi.codes import AdditionalSense, SenseKey
from vfio_user.hardware.scsi.codes import OperationCode as Op
from vfio_user.hardware.scsi.inquiry import VpdPage, identification_page
from vfio_user.hardware.scsi.layout import Layout
from vfio_user.hardware.scsi.log_pages import (
    ErrorCounter,
    LogPage,
    counter,
    informational_exceptions,
    log_page,
    supported_log_pages,
)
from vfio_user.hardware.scsi.mode_pages import LONG_BLOCK_DESCRIPTOR, SHORT_BLOCK_DESCRIPTOR
from vfio_user.hardware.scsi.sense import Sense

__all__ = ["PIECE", "BlockUnit"]

#: Bytes a task holds at a time: much more than it costs to come back for more, much less than guests have.
PIECE = 256 * 1024

#: ... of which there is no copy, until they are moved at least.
_STORED_PIECE = 1024 * 1024

#: Bytes that are sooner read than asked about.
_SMALL = 32 * 1024

_CAPACITY_10 = struct.Struct(">II")
_CAPACITY_16 = Layout(32, last=(0, 7, 64), block_size=(8, 7, 32), exponent=(13, 3, 4), thin=(14, 7), zeroes=(14, 6))

#: What storage says, in the words of SCSI: key and code. Anything else is an error of the medium.
_ERRORS = {
    errno.EROFS: (SenseKey.DATA_PROTECT, AdditionalSense.WRITE_PROTECTED),
    errno.EPERM: (SenseKey.DATA_PROTECT, AdditionalSense.WRITE_PROTECTED),
    errno.EACCES: (SenseKey.DATA_PROTECT, AdditionalSense.WRITE_PROTECTED),
    errno.ENOSPC: (SenseKey.DATA_PROTECT, AdditionalSense.SPACE_ALLOCATION_FAILED_WRITE_PROTECT),
    errno.EDQUOT: (SenseKey.DATA_PROTECT, AdditionalSense.SPACE_ALLOCATION_FAILED_WRITE_PROTECT),
    errno.ENOMEDIUM: (SenseKey.NOT_READY, AdditionalSense.MEDIUM_NOT_PRESENT),
}


class BlockUnit(ReservableUnit):
    """See the module.

    Args:
        backend: the medium; None for a removable unit that is empty.
        block_size: bytes of a logical block.
        serial: tells it from every other unit; made up from the other names when empty.
        vendor: 8 characters of ASCII at most.
        product: 16 at most.
        revision: 4 at most.
        removable: the medium can be taken out.
        read_only: nothing can be written, even where the backend could.
        workers: where work that may block is done.

    Attributes:
        block_sizes: those a block can have, for a subclass to say.
        backend: the medium, in or out.
        is_present: it is in.

    Raises:
        ValueError: a text is too long or not ASCII; the block size is not one of ``block_sizes``, or smaller than the
            backend's; the backend holds not even one block; there is no backend, and the unit is not removable.

    Ownership: the backend stays its owner's.
    """

    block_sizes: ClassVar[tuple[int, ...]] = ()

    def __init__(
        self,
        backend: Backend | None,
        *,
        block_size: int,
        serial: str = "",
        vendor: str = "",
        product: str = "",
        revision: str = "",
        removable: bool = False,
        read_only: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.vendor = _text("vendor", vendor or self.vendor, 8)
        self.product = _text("product", product or self.product, 16)
        self.revision = _text("revision", revision or self.revision, 4)
        self.is_removable = removable
        if block_size not in self.block_sizes:
            raise ValueError(f"a block of {block_size} bytes is none of {', '.join(map(str, self.block_sizes))}")
        self.block_size = block_size
        if backend is None and not removable:
            raise ValueError("a unit without a medium has to be removable: give a backend, or removable=True")
        self._wants_read_only = read_only
        self._check_backend(backend)
        self.backend = backend
        self.peripheral = self.device_type
        self.serial = _text("serial", serial or self._made_up_serial(), 64)
        self.is_present = backend is not None
        self._is_stopped = False
        self._prevented_by: set[int] = set()
        self._counters = {page: dict.fromkeys(ErrorCounter, 0) for page in (LogPage.READ_ERRORS, LogPage.WRITE_ERRORS)}

    def _made_up_serial(self) -> str:
        return hashlib.sha256(f"{self.vendor}\0{self.product}".encode()).hexdigest()[:16]

    def _check_backend(self, backend: Backend | None) -> None:
        if backend is None:
            return
        if backend.block_size > self.block_size:
            raise ValueError(
                f"the backend has blocks of {backend.block_size} bytes, the unit smaller ones of {self.block_size}: "
                f"use block_size={backend.block_size}"
            )
        if backend.size < self.block_size:
            raise ValueError(
                f"the backend has {backend.size} bytes, not even a block of {self.block_size}: give it one"
            )

    # The medium.

    @property
    def blocks(self) -> int:
        """How many whole blocks it has."""
        return self.backend.size // self.block_size if self.backend is not None else 0

    @property
    def is_read_only(self) -> bool:
        """Nothing can be written."""
        return self._wants_read_only or (self.backend is not None and self.backend.read_only)

    def insert(self, backend: Backend) -> None:
        """Puts a medium in, instead of one that may be there. Initiators are told. A unit that is not removable changes
        its capacity.

        Raises:
            ValueError: its blocks are larger than the unit's, or it has none.
        """
        self._check_backend(backend)
        before, self.backend = self.blocks, backend
        self._is_stopped = False
        if self.is_removable:
            self.is_present = True
            self.medium_changed()
        elif before != self.blocks:
            self.attention(AdditionalSense.CAPACITY_CHANGED)

    def remove(self) -> Backend | None:
        """Takes the medium out, whether or not an initiator prevents it, and returns it.

        Raises:
            ValueError: the unit is not removable.
        """
        if not self.is_removable:
            raise ValueError(f"the medium of {self.product or type(self).__name__} cannot be taken out")
        backend, self.backend = self.backend, None
        self.is_present = False
        self._prevented_by.clear()
        return backend

    def medium_changed(self) -> None:
        """A medium is there, and may be another one."""
        self.attention(AdditionalSense.MEDIUM_MAY_HAVE_CHANGED)

    def tray_moved(self, *, is_open: bool) -> None:
        """The medium was ejected, or loaded; override where there is something to see."""

    def on_reset(self) -> None:
        """It runs, and can be opened."""
        super().on_reset()
        self._is_stopped = False
        self._prevented_by.clear()

    def check_ready(self) -> None:
        """There is a medium, and it runs."""
        if not self.is_present or self.backend is None:
            raise failed(SenseKey.NOT_READY, self.reason_of_absence())
        if self._is_stopped:
            raise failed(SenseKey.NOT_READY, AdditionalSense.NOT_READY_INITIALIZING_COMMAND_REQUIRED)

    def reason_of_absence(self) -> AdditionalSense:
        """Why there is no medium; override."""
        return AdditionalSense.MEDIUM_NOT_PRESENT

    def medium(self) -> Backend:
        """The medium.

        Raises:
            CommandFailed: the unit is not ready.
        """
        self.check_ready()
        assert self.backend is not None
        return self.backend

    def extent(self, cdb: Command, blocks: int | None = None) -> tuple[Backend, int, int]:
        """The medium, and the bytes of it a command is about: offset and length.

        Raises:
            CommandFailed: the unit is not ready; the blocks are not all there.
        """
        medium = self.medium()
        lba, count = cdb.lba, cdb.length if blocks is None else blocks
        if lba + count > self.blocks:
            raise illegal(AdditionalSense.LBA_OUT_OF_RANGE, cdb.pointer("lba"))
        return medium, lba * self.block_size, count * self.block_size

    def sense_of_error(self, exc: Exception, task: Task) -> Sense:
        """What an error of storage means."""
        if not isinstance(exc, OSError):
            return super().sense_of_error(exc, task)
        cdb = Command(task.cdb)
        writes = self.writes(cdb)
        self._counters[LogPage.WRITE_ERRORS if writes else LogPage.READ_ERRORS][ErrorCounter.UNCORRECTED] += 1
        self._counters[LogPage.WRITE_ERRORS if writes else LogPage.READ_ERRORS][ErrorCounter.TOTAL] += 1
        key, additional = _ERRORS.get(exc.errno or 0, (SenseKey.MEDIUM_ERROR, AdditionalSense.UNRECOVERED_READ_ERROR))
        if additional is AdditionalSense.UNRECOVERED_READ_ERROR and writes:
            additional = AdditionalSense.WRITE_ERROR
        information = cdb.lba + task.done // self.block_size if "lba" in cdb and "length" in cdb else None
        return Sense(key, additional, information)

    def writes(self, cdb: Command) -> bool:
        """Whether a command changes the medium."""
        return False

    # Steps of work, and of data.

    def call(self, medium: Backend, call: Callable[[], object], *, blocks: bool | None = None) -> Steps:
        """Does something with the medium, as work where it may block: where reading and writing may, unless said."""
        if medium.blocking if blocks is None else blocks:
            yield Work(call)
        else:
            call()
        return None

    def fetch(self, medium: Backend, offset: int, length: int) -> Generator[Step, Any, Buffer]:
        """Reads a piece: into memory of its own, or where the contents are memory, not at all."""
        self._counters[LogPage.READ_ERRORS][ErrorCounter.BYTES_PROCESSED] += length
        contents = medium.contents
        if contents is not None:
            return contents[offset : offset + length]
        piece = bytearray(length)
        views = [memoryview(piece)]
        # What is in memory already is had sooner than another thread has heard of it.
        if not medium.blocking or not medium.read_at_once(offset, views):
            yield from self.call(medium, lambda: medium.read(offset, views))
        return piece

    def try_to_read(self, medium: Backend, offset: int, length: int) -> Steps:
        """Reads a piece whose bytes nobody wants. As work even if they are in memory: it can be a very long command."""
        self._counters[LogPage.READ_ERRORS][ErrorCounter.BYTES_PROCESSED] += length
        if medium.contents is None:
            yield from self.call(medium, lambda: medium.read(offset, [memoryview(bytearray(length))]))
        return None

    def send(self, task: Task, medium: Backend, offset: int, length: int) -> Steps:
        """The steps that read blocks to the initiator."""
        task.expect(length)
        while task.done < length:
            start = offset + task.done
            left = min(_STORED_PIECE, length - task.done)
            if left > _SMALL and medium.contents is None and medium.is_at_hand(start, left):
                self._counters[LogPage.READ_ERRORS][ErrorCounter.BYTES_PROCESSED] += left
                yield StoredDataIn(medium, start, left)
            else:
                yield DataIn((yield from self.fetch(medium, start, min(PIECE, left))))
        return None

    # Commands.

    @command(Op.READ_6, Op.READ_10, Op.READ_12, Op.READ_16)
    def read(self, task: Task, cdb: Command) -> Steps:
        """READ. FUA and DPO ask for nothing: every read comes from the backend."""
        if "protect" in cdb and cdb.protect:
            raise invalid_field(cdb, "protect")
        # In the six-byte command no length at all means 256.
        blocks = 256 if cdb.operation_code == Op.READ_6 and not cdb.length else None
        return self.send(task, *self.extent(cdb, blocks))

    @command(Op.VERIFY_10, Op.VERIFY_12, Op.VERIFY_16)
    def verify(self, task: Task, cdb: Command) -> Steps:
        """VERIFY: that blocks can be read, or with BYTCHK that they are what the initiator sends. Spec: SBC-3 5.30."""
        if cdb.protect:
            raise invalid_field(cdb, "protect")
        if cdb.byte_check == 2:
            raise invalid_field(cdb, "byte_check")
        medium, offset, length = self.extent(cdb)
        if cdb.byte_check == 0:
            for start in range(0, length, PIECE):
                yield from self.try_to_read(medium, offset + start, min(PIECE, length - start))
            return None
        if cdb.byte_check == 3 and length:
            block = bytes((yield DataOut(self.block_size)))
            for start in range(0, length, PIECE):
                count = min(PIECE, length - start)
                self.compare((yield from self.fetch(medium, offset + start, count)), block * (count // self.block_size))
            return None
        task.expect(length)
        start = task.done
        while start < length:
            count = min(PIECE, length - start)
            given = yield DataOut(count)
            self.compare((yield from self.fetch(medium, offset + start, count)), given)
            start += count
        return None

    @staticmethod
    def compare(here: Buffer, given: Buffer) -> None:
        """Fails with a MISCOMPARE unless the two are the same."""
        if here != given:
            raise failed(SenseKey.MISCOMPARE, AdditionalSense.MISCOMPARE_DURING_VERIFY)

    @command(Op.SEEK_10)
    def seek(self, task: Task, cdb: Command) -> None:
        """SEEK: nothing moves."""
        self.extent(cdb, 1)

    @command(Op.READ_CAPACITY_10)
    def read_capacity_10(self, task: Task, cdb: Command) -> bytes:
        """READ CAPACITY (10); all ones where four bytes do not suffice. Spec: SBC-3 5.15."""
        self.check_ready()
        if cdb.lba and not cdb.partial:
            raise invalid_field(cdb, "lba")
        return _CAPACITY_10.pack(min(self.blocks - 1, 0xFFFF_FFFF), self.block_size)

    @command((Op.SERVICE_ACTION_IN_16, ServiceAction.READ_CAPACITY_16))
    def read_capacity_16(self, task: Task, cdb: Command) -> bytes:
        """READ CAPACITY (16). Spec: SBC-3 5.16."""
        self.check_ready()
        if cdb.lba and not cdb.partial:
            raise invalid_field(cdb, "lba")
        return bytes(_CAPACITY_16.pack(last=self.blocks - 1, block_size=self.block_size, **self.provisioning()))

    def provisioning(self) -> dict[str, int]:
        """What READ CAPACITY (16) says about how blocks are held; override."""
        return {}

    @command(Op.START_STOP_UNIT)
    def start_stop_unit(self, task: Task, cdb: Command) -> Steps:
        """START STOP UNIT: runs and stops; loads and ejects where that can be done. Spec: SBC-3 5.25."""
        if cdb.power_condition:
            raise invalid_field(cdb, "power_condition")
        if cdb.load_eject and not self.is_removable:
            raise invalid_field(cdb, "load_eject")
        if not cdb.load_eject:
            if not cdb.start and self.backend is not None and not cdb.no_flush and not self.is_read_only:
                yield from self.call(self.backend, self.backend.flush, blocks=self.backend.flush_blocks)
            self._is_stopped = not cdb.start
        elif cdb.start:
            self.tray_moved(is_open=False)
            self._is_stopped = False
            if not self.is_present and self.backend is not None:
                self.is_present = True
                self.medium_changed()
        else:
            if self._prevented_by:
                raise illegal(AdditionalSense.MEDIUM_REMOVAL_PREVENTED)
            self.tray_moved(is_open=True)
            self.is_present = False
        return None

    @command(Op.PREVENT_ALLOW_MEDIUM_REMOVAL)
    def prevent_allow_medium_removal(self, task: Task, cdb: Command) -> None:
        """PREVENT ALLOW MEDIUM REMOVAL, by initiator. Spec: SPC-4 6.18."""
        if cdb.prevent > 1:
            raise invalid_field(cdb, "prevent")
        if cdb.prevent:
            self._prevented_by.add(task.initiator)
        else:
            self._prevented_by.discard(task.initiator)

    @property
    def is_removal_prevented(self) -> bool:
        """An initiator keeps the medium in."""
        return bool(self._prevented_by)

    @command(Op.LOG_SENSE)
    def log_sense(self, task: Task, cdb: Command) -> bytes:
        """LOG SENSE: what was read and written, and what went wrong. Spec: SPC-4 6.7."""
        if cdb.save_parameters:
            raise invalid_field(cdb, "save_parameters")
        if cdb.page_control not in (0, 1):  # threshold and default values would be the same, and change nothing
            raise invalid_field(cdb, "page_control")
        pages = [*LogPage]
        if cdb.page == LogPage.SUPPORTED_PAGES and cdb.subpage in (0, 0xFF):
            return supported_log_pages(pages, with_subpages=bool(cdb.subpage))
        if cdb.page not in pages:
            raise invalid_field(cdb, "page")
        if cdb.subpage:
            raise invalid_field(cdb, "subpage")
        page = LogPage(cdb.page)
        if page is LogPage.INFORMATIONAL_EXCEPTIONS:
            if cdb.parameter_pointer > 0:
                raise invalid_field(cdb, "parameter_pointer")
            return log_page(page, informational_exceptions())
        counters = {code: value for code, value in self._counters[page].items() if code >= cdb.parameter_pointer}
        if not counters:
            raise invalid_field(cdb, "parameter_pointer")
        return log_page(page, b"".join(counter(code, value) for code, value in counters.items()))

    # What it says about itself.

    def block_descriptor(self, *, long_lba: bool) -> bytes:
        """The medium's blocks, 0 while there is none."""
        layout = LONG_BLOCK_DESCRIPTOR if long_lba else SHORT_BLOCK_DESCRIPTOR
        blocks = self.blocks if self.is_present else 0
        most = (1 << layout.fields["blocks"].width) - 1
        return bytes(layout.pack(blocks=min(blocks, most), block_size=self.block_size))

    def vpd_pages(self) -> Mapping[int, bytes]:
        """With its names."""
        digest = hashlib.sha256(f"{self.vendor}\0{self.product}\0{self.serial}".encode()).digest()
        naa = 3 << 60 | int.from_bytes(digest[:8], "big") >> 4
        names = identification_page(self.vendor, self.product, self.serial, naa)
        return {**super().vpd_pages(), VpdPage.DEVICE_IDENTIFICATION: names}

    # Saving.

    def save(self) -> dict[str, Any]:
        """With what is known of the medium, not its contents."""
        return {
            **super().save(),
            "is_present": self.is_present,
            "is_stopped": self._is_stopped,
            "prevented_by": sorted(self._prevented_by),
            "counters": {
                page.name: {code.name: value for code, value in counters.items()}
                for page, counters in self._counters.items()
            },
            "blocks": self.blocks,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """With what is known of the medium.

        Raises:
            ValueError: the medium has another number of blocks.
        """
        if state["blocks"] != self.blocks:
            raise ValueError(f"the saved unit has {state['blocks']} blocks, this one {self.blocks}")
        super().load(state)
        self.is_present, self._is_stopped = state["is_present"], state["is_stopped"]
        self._prevented_by = set(state["prevented_by"])
        for page, counters in self._counters.items():
            counters.update({ErrorCounter[name]: value for name, value in state["counters"][page.name].items()})


def _text(what: str, text: str, length: int) -> str:
    if len(text) > length or not text.isascii() or not text.isprintable():
        raise ValueError(f"the {what} {text!r} is not at most {length} printable characters of ASCII")
    return text
