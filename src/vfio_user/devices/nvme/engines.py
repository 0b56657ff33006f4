"""Which engine carries out the commands of I/O queues: the one for batches where there is NumPy, over the other one."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from vfio_user.devices.nvme.nvm_commands import NvmCommands
from vfio_user.hardware.nvme.entries import SUBMISSION_ENTRY_SIZE, SubmissionEntry
from vfio_user.hardware.nvme.opcodes import NvmOpcode

if TYPE_CHECKING:
    from vfio_user.devices.nvme.controller import Nvme
    from vfio_user.devices.nvme.queues import SubmissionQueue
    from vfio_user.devices.nvme.vector import Medium, VectorEngine

__all__ = ["CROSS_OVER", "BatchCommands", "make_engine"]


#: From so many commands on they are quicker together than one by one; measured by ``make bench-nvme``.
CROSS_OVER = 4

#: Where in a command its namespace is.
_NSID = slice(4, 8)


class BatchCommands:
    """Carries out like commands of a batch together, and gives all others to the engine that can do them all.

    NumPy is imported with the first batch that is worth it: a controller that is only looked at starts without.

    Args:
        controller: whose commands they are.

    Attributes:
        one_by_one: the engine for the others.
        together: how many commands were carried out together; for statistics.
    """

    def __init__(self, controller: Nvme) -> None:
        self.one_by_one = NvmCommands(controller)
        self.together = 0
        self._controller = controller
        self._least = CROSS_OVER * SUBMISSION_ENTRY_SIZE
        self._vector: VectorEngine | None = None
        self._make_medium: type[Medium]

    def take(self, queue: SubmissionQueue, entries: bytes) -> None:
        """See ``Engine``."""
        if (
            len(entries) < self._least
            # Fused commands, whose neighbours matter (and SGLs); or identifiers that may be in use.
            or entries[1::SUBMISSION_ENTRY_SIZE].strip(b"\0")
            or queue.fused is not None
            or queue.in_flight
            or not self._is_memory(int.from_bytes(entries[_NSID], "little"))
        ):
            self.one_by_one.take(queue, entries)
            return
        vector = self._vector
        if vector is None or vector.page_size != self._controller.data.page_size:
            vector = self._make_vector()
        health = self._controller.health
        for run in vector.carry_out(entries, queue.qid, queue.ring.head):
            if run.commands:
                self.one_by_one.take(queue, run.commands)
            else:
                queue.completions.ready += run.completions
                self.together += run.number
                blocks = run.number * run.size >> 9
                if run.opcode == NvmOpcode.READ:
                    health.reads += run.number
                    health.blocks_read += blocks
                else:
                    health.writes += run.number
                    health.blocks_written += blocks

    def _is_memory(self, nsid: int) -> bool:
        """The namespace may be one of those this engine works with: there is no need to look at the commands if not."""
        namespace = self._controller.namespaces.get(nsid)
        return namespace is not None and not namespace.backend.blocking

    def execute(self, queue: SubmissionQueue, entry: SubmissionEntry) -> None:
        """See ``Engine``."""
        self.one_by_one.execute(queue, entry)

    def _make_vector(self) -> VectorEngine:
        from vfio_user.devices.nvme.vector import Medium, VectorEngine

        if self._vector is not None:
            self._vector.close()
        controller = self._controller
        self._make_medium = Medium
        self._vector = VectorEngine(
            controller.dma, self._medium, max_transfer=controller.max_transfer, page_size=controller.data.page_size
        )
        return self._vector

    def _medium(self, nsid: int) -> Medium | None:
        namespace = self._controller.namespaces.get(nsid)
        if (
            namespace is None
            or not namespace.attached
            or namespace.formatting
            or namespace.uncorrectable
            or not namespace.gate.is_open
        ):
            return None
        # Without a write cache each write has to last before it ends.
        writable = self._controller.features.write_cache and not namespace.write_protected
        return self._make_medium(namespace.backend, namespace.shift, writable)


def make_engine(controller: Nvme, *, vector: bool | None = None) -> BatchCommands | NvmCommands:
    """The engine of a controller.

    Args:
        controller: whose commands it carries out.
        vector: together where possible, or always one by one; None for what there is.

    Raises:
        ValueError: together, without NumPy.
    """
    has_numpy = find_spec("numpy") is not None
    if vector and not has_numpy:
        raise ValueError(
            "commands are carried out together with NumPy, which is not here: pip install vfio-user[vector]"
        )
    if vector is None:
        vector = has_numpy
    return BatchCommands(controller) if vector else NvmCommands(controller)
