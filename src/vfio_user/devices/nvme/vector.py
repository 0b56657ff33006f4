"""Many reads and writes at once: the vector engine of the NVMe controller.

Commands a driver submits together are mostly alike: reads, or writes, of as many whole pages each, of one namespace,
described by PRP entries. Seen as a table of eight 64-bit words a command, two reductions (the OR and the AND of each
column) tell that all commands are alike and every address aligned; one indexed assignment then copies their pages
between guest memory and the backend's contents. That takes about as long as three commands one by one, plus little
more than the copy for each: so it pays from ``CROSS_OVER`` commands on.

Whatever is unusual in any way - another command, an SGL, a buffer that begins inside a page, an error - is not carried
out here but left, in its place in the order, to the engine that takes commands one by one, which knows every rule and
every status. So this module never reports an error: what it carries out has succeeded.

**Order.** NVMe promises none between commands that are outstanding together. Here reads and writes that follow each
other are carried out in groups of alike ones, in the order of the first of each; what is unusual comes where it stands.
Each command is whole: of two that write the same page, one is there afterwards, not parts of both.

Needs NumPy.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vfio_user.backends import Backend
from vfio_user.devices.nvme.engines import CROSS_OVER
from vfio_user.hardware.nvme.entries import COMPLETION_ENTRY, SUBMISSION_ENTRY, CompletionEntry, SubmissionEntry
from vfio_user.hardware.nvme.opcodes import NvmOpcode
from vfio_user.memory.dma import Dma
from vfio_user.rings.arrays import entry_type
from vfio_user.rings.pages import GuestPages, as_pages

__all__ = ["Medium", "Run", "VectorEngine"]

_READ = int(NvmOpcode.READ)
_WRITE = int(NvmOpcode.WRITE)


def _word(layout: struct.Struct, names: Sequence[str], field: str, size: int = 8) -> int:
    """Which word of an entry, of so many bytes, a field begins."""
    fields = entry_type(layout, names).fields
    assert fields is not None
    word, rest = divmod(fields[field][1], size)
    assert not rest
    return word


def _column(field: str) -> int:
    """Which 64-bit word of a command a field begins."""
    return _word(SUBMISSION_ENTRY, SubmissionEntry._fields, field)


# The words of a command that matter here, and what lies in them: numbers are little-endian, so what comes first is low.
_HEADER = _column("opcode")  # with flags, cid and, above, nsid
_PRP1 = _column("prp1")
_PRP2 = _column("prp2")
_SLBA = _column("cdw10")  # with cdw11
_LENGTH = _column("cdw12")  # NLB, counted from 0, and flags; above, cdw13, which only advises
_WORDS = SUBMISSION_ENTRY.size // 8
_CID_MASK = 0xFFFF_0000  # of the header
_CID_SHIFT = np.array(16)  # as an array, which a Python integer would be made into each time
# Where it is in a completion.
_COMPLETION_CID = 2 * _word(COMPLETION_ENTRY, CompletionEntry._fields, "cid", 2)
_LOW = 0xFFFF_FFFF

#: Signed, as indexes are; what is negative then is no address anybody maps, and no block a medium has.
_Words = NDArray[np.int64]


class Medium(NamedTuple):
    """What the engine has to know of a namespace.

    Attributes:
        backend: its contents; those without ``contents`` are left to the other engine.
        block_shift: bytes of a logical block are ``1 << block_shift``; there is no metadata.
        writable: writes are to be carried out here.
    """

    backend: Backend
    block_shift: int
    writable: bool


class Run(NamedTuple):
    """What became of some commands of a batch.

    Attributes:
        commands: submission queue entries that are left to be carried out, in order; empty when they were.
        completions: completion queue entries of commands that were carried out, all of success.
        opcode: what they were.
        number: how many.
        size: bytes each transferred.
    """

    commands: bytes
    completions: bytearray
    opcode: int = 0
    number: int = 0
    size: int = 0


class VectorEngine:
    """See the module.

    Args:
        dma: the guest's memory.
        medium: what is behind a namespace identifier; None for one that is not to be worked with here.
        max_transfer: bytes of the largest transfer (MDTS).
        page_size: bytes of a memory page (CC.MPS).

    Ownership: ``close`` it when the controller is disabled.

    Threading: session thread.
    """

    def __init__(
        self, dma: Dma, medium: Callable[[int], Medium | None], *, max_transfer: int, page_size: int = 4096
    ) -> None:
        self._medium = medium
        self._max_transfer = max_transfer
        self.page_size = page_size
        self._page_shift = page_size.bit_length() - 1
        #: By the size of blocks: from their numbers to those of pages.
        self._row_shifts = [np.array(self._page_shift - shift) for shift in range(self._page_shift + 1)]
        self._guest = GuestPages(dma, page_size)

    def close(self) -> None:
        """Lets go of the guest's memory. Idempotent."""
        self._guest.close()

    def carry_out(self, batch: bytes, sq_id: int, sq_head: int) -> Iterator[Run]:
        """Carries out what is usual of a batch.

        Args:
            batch: whole submission queue entries, copied from the queue.
            sq_id: of the queue they are from, for the completions.
            sq_head: where that queue stands now, for the completions.

        Yields:
            What became of them. Carry out the commands of a run, or post its completions, before asking for the next.
        """
        count = len(batch) // SUBMISSION_ENTRY.size
        if count < CROSS_OVER:
            if count:
                yield Run(batch, bytearray())
            return
        commands: _Words = np.ndarray((count, _WORDS), np.int64, batch)
        run = self._alike(commands, sq_id, sq_head)
        if run is not None:
            yield run
            return
        plain = self._plain(commands)
        edges = [0, *(np.flatnonzero(plain[1:] != plain[:-1]) + 1).tolist(), count]
        left = 0
        for start, stop in itertools.pairwise(edges):
            if plain[start] and stop - start >= CROSS_OVER:
                if left < start:
                    yield _left(commands[left:start])
                yield from self._groups(commands[start:stop], sq_id, sq_head)
                left = stop
        if left < count:
            yield _left(commands[left:])

    def _plain(self, commands: _Words) -> NDArray[np.bool_]:
        """Which commands are reads or writes of the first one's namespace, and aligned at both ends."""
        kind = commands[:, _HEADER] & ~_CID_MASK
        nsid = int(kind[0]) & ~_LOW
        plain: NDArray[np.bool_] = (kind == nsid | _READ) | (kind == nsid | _WRITE)
        medium = self._medium(nsid >> 32 & _LOW)
        if medium is None or medium.block_shift > self._page_shift:
            return np.zeros_like(plain)
        misaligned = commands[:, _SLBA] & (self.page_size >> medium.block_shift) - 1
        misaligned |= commands[:, _PRP1] & self.page_size - 1
        plain &= misaligned == 0
        return plain

    def _groups(self, commands: _Words, sq_id: int, sq_head: int) -> Iterator[Run]:
        """Carries out reads and writes, those of a kind and a length together."""
        keys = commands[:, _HEADER] & 0xFFFF | commands[:, _LENGTH] << 32
        for key in dict.fromkeys(keys.tolist()):
            group = commands[keys == key]
            run = self._alike(group, sq_id, sq_head) if len(group) >= CROSS_OVER else None
            yield _left(group) if run is None else run

    def _alike(self, commands: _Words, sq_id: int, sq_head: int) -> Run | None:
        """Carries out commands that are all alike and usual; None, and nothing is done, if they are not."""
        # By columns: reducing them is then twice as quick. A bit that is the same in every command is the same in both.
        table = commands.T.copy()
        some: list[int] = np.bitwise_or.reduce(table, 1).tolist()
        every: list[int] = np.bitwise_and.reduce(table, 1).tolist()
        header = every[_HEADER]
        if (some[_HEADER] ^ header) & ~_CID_MASK or (some[_LENGTH] ^ every[_LENGTH]) & _LOW:
            return None
        opcode = header & 0xFFFF  # the flags too: fused commands, and SGLs, are not usual
        if opcode not in (_READ, _WRITE):
            return None
        medium = self._medium(header >> 32 & _LOW)
        if medium is None or not (medium.writable or opcode == _READ) or medium.block_shift > self._page_shift:
            return None
        page_mask = self.page_size - 1
        size = ((every[_LENGTH] & _LOW) + 1) << medium.block_shift
        if size > self._max_transfer or size & page_mask or every[_LENGTH] & 0xFFFF_0000:
            return None
        # All are multiples of a power of two if all their bits together are. And these are not less than any of them:
        # only where they are too large has each to be looked at.
        offset, last = some[_SLBA] << medium.block_shift, medium.backend.size - size
        if (some[_PRP1] | offset) & page_mask or offset < 0:
            return None
        if offset > last and int(table[_SLBA].max()) << medium.block_shift > last:
            return None
        if not self._transfer(table, opcode, size >> self._page_shift, some, every, medium):
            return None
        count = len(commands)
        completions = bytearray(COMPLETION_ENTRY.pack(0, 0, sq_head, sq_id, 0, 0) * count)
        np.ndarray(count, np.uint16, completions, _COMPLETION_CID, COMPLETION_ENTRY.size)[:] = (
            table[_HEADER] >> _CID_SHIFT
        )
        return Run(b"", completions, opcode, count, size)

    def _transfer(
        self, table: _Words, opcode: int, pages: int, some: list[int], every: list[int], medium: Medium
    ) -> bool:
        """Copies the data of alike commands, if all of their addresses are usual, and all of them are mapped."""
        found = self._addresses(table, pages, some, every)
        if found is None:
            return False
        addresses, bounds = found
        try:
            contents = medium.backend.contents
        except OSError:
            return False
        if contents is None:
            return False
        located = self._guest.locate(addresses, write=opcode == _READ, bounds=bounds)
        if located.found is not None:
            return False
        disk = as_pages(contents, self.page_size)
        rows = table[_SLBA] >> self._row_shifts[medium.block_shift]
        if pages > 1:
            (located.store_runs if opcode == _READ else located.load_runs)(disk, rows, pages)
        else:
            (located.store if opcode == _READ else located.load)(disk, rows)
        return True

    def _addresses(
        self, table: _Words, pages: int, some: list[int], every: list[int]
    ) -> tuple[_Words, tuple[int, int]] | None:
        """The address of every page of the guest, command after command; None where one is unusual.

        Returns:
            The addresses, and what none of them is below, and none above.

        Spec: 4.1.1. PRP entry 2 is the second page of two, and of more the address of the list of them.
        """
        low, high = every[_PRP1], some[_PRP1]
        if pages == 1:
            return table[_PRP1], (low, high)
        if some[_PRP2] & self.page_size - 1:
            return None  # not a page; or a list that begins inside one, as it may
        if pages == 2:
            return table[_PRP1 : _PRP2 + 1].T.ravel(), (low & every[_PRP2], high | some[_PRP2])
        listed = pages - 1
        if listed * 8 > self.page_size:
            return None  # the list goes on in another page
        lists = self._guest.locate(table[_PRP2], write=False, bounds=(every[_PRP2], some[_PRP2]))
        if lists.found is not None:
            return None
        addresses = np.empty((table.shape[1], pages), np.int64)
        addresses[:, 0] = table[_PRP1]
        # A copy, made once, before anything in it is looked at.
        addresses[:, 1:] = lists.load_words(listed)
        flat = addresses.ravel()
        high = int(np.bitwise_or.reduce(flat))
        if high & self.page_size - 1:
            return None
        return flat, (int(np.bitwise_and.reduce(flat)), high)


def _left(commands: _Words) -> Run:
    return Run(commands.tobytes(), bytearray())
