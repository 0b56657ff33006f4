"""Namespaces made, attached, formatted and deleted by the host. Spec: 5.14 (Format), 5.19, 5.20, 8.12."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

from vfio_user.devices.nvme.command import Command, CommandFailed
from vfio_user.devices.nvme.identify import CONTROLLER_ID
from vfio_user.devices.nvme.namespaces import LBA_SHIFTS, BlockRanges, Namespace, Slice
from vfio_user.hardware.nvme.identify import (
    BROADCAST_NSID,
    IDENTIFY_SIZE,
    IdentifyNamespace,
    unpack_controller_list,
)
from vfio_user.hardware.nvme.opcodes import AdminOpcode
from vfio_user.hardware.nvme.status import Status

if TYPE_CHECKING:
    from vfio_user.devices.nvme.controller import Nvme

__all__ = ["Management"]

_CREATE, _DELETE = 0, 1
_ATTACH, _DETACH = 0, 1


class Management:
    """Namespace Management, Namespace Attachment and Format NVM.

    Args:
        controller: whose.
    """

    def __init__(self, controller: Nvme) -> None:
        self._controller = controller

    def handlers(self) -> dict[int, Callable[[Command], int | None]]:
        """The admin commands handled here."""
        return {
            AdminOpcode.NAMESPACE_MANAGEMENT: self._manage,
            AdminOpcode.NAMESPACE_ATTACHMENT: self._attachment,
            AdminOpcode.FORMAT_NVM: self._format,
        }

    def _manage(self, command: Command) -> int | None:
        select = command.entry.cdw10 & 0xF
        if select == _CREATE:
            return self._create(command)
        if select == _DELETE:
            return self._delete(command)
        raise CommandFailed(Status.INVALID_FIELD, location=40)

    def _create(self, command: Command) -> int | None:
        entry, namespaces = command.entry, self._controller.namespaces
        if entry.cdw11 >> 24:
            raise CommandFailed(Status.IO_COMMAND_SET_NOT_SUPPORTED, location=47)
        wanted = IdentifyNamespace.unpack(self._controller.take(command, IDENTIFY_SIZE))
        if wanted.flbas & 0xF >= len(LBA_SHIFTS) or wanted.flbas & 0x70 or wanted.dps:
            raise CommandFailed(Status.INVALID_FORMAT)
        if wanted.nmic & ~1 or wanted.nvmsetid or wanted.endgid:
            raise CommandFailed(Status.INVALID_FIELD)
        if wanted.ncap != wanted.nsze:
            raise CommandFailed(Status.THIN_PROVISIONING_NOT_SUPPORTED)
        if not wanted.nsze:
            raise CommandFailed(Status.INVALID_FIELD)
        nsid = namespaces.free_nsid()
        if nsid is None:
            raise CommandFailed(Status.NAMESPACE_IDENTIFIER_UNAVAILABLE)
        lba_format = wanted.flbas & 0xF
        backend = namespaces.allocate(wanted.nsze << LBA_SHIFTS[lba_format])
        if backend is None:
            raise CommandFailed(Status.NAMESPACE_INSUFFICIENT_CAPACITY)
        namespace = namespaces.add(backend, lba_format, nsid, uuid.uuid4().bytes)
        namespace.attached = False
        if backend.read_only:
            return self._controller.settings.keep(command, nsid)
        namespace.is_new = True

        def finish(_: object) -> int | None:
            namespace.is_new = False
            return self._controller.settings.keep(command, nsid)

        def ended() -> None:
            if namespace.is_new and namespaces.get(nsid) is namespace:  # it failed, or was aborted
                namespaces.remove(nsid)

        # What the last namespace there has left is not this one's, and must not be after a crash of the machine either.
        def work() -> None:
            backend.discard(0, backend.size)
            backend.flush()

        self._controller.jobs.start(
            command,
            work,
            finish,
            gate=namespace.gate,
            alone=True,
            blocks=backend.flush_blocks,
            write=True,
            ended=ended,
        )
        return None

    def _delete(self, command: Command) -> int | None:
        nsid, namespaces = command.entry.nsid, self._controller.namespaces
        targets = list(namespaces) if nsid == BROADCAST_NSID else [namespaces.existing(nsid)]
        for namespace in targets:
            if not isinstance(namespace.backend, Slice):
                # Its blocks were given to the device as they are: they are not the host's to throw away.
                raise CommandFailed(Status.OPERATION_DENIED, location=4)
        for namespace in targets:
            namespace.attached = False

        def remove() -> int | None:
            for namespace in targets:
                if namespaces.get(namespace.nsid) is namespace:
                    namespaces.remove(namespace.nsid)
            return self._controller.settings.keep(command)

        # What has begun there must not end in a namespace that is made in the same place.
        return self._when_quiet(command, targets, remove)

    def _attachment(self, command: Command) -> int | None:
        select = command.entry.cdw10 & 0xF
        if select not in (_ATTACH, _DETACH):
            raise CommandFailed(Status.INVALID_FIELD, location=40)
        namespace = self._controller.namespaces.existing(command.entry.nsid)
        try:
            controllers = unpack_controller_list(bytes(self._controller.take(command, IDENTIFY_SIZE)))
        except ValueError:
            raise CommandFailed(Status.CONTROLLER_LIST_INVALID) from None
        if controllers != [CONTROLLER_ID]:
            raise CommandFailed(Status.CONTROLLER_LIST_INVALID)
        if select == _ATTACH:
            if namespace.attached:
                raise CommandFailed(Status.NAMESPACE_ALREADY_ATTACHED)
            namespace.attached = True
        else:
            if not namespace.attached:
                raise CommandFailed(Status.NAMESPACE_NOT_ATTACHED)
            namespace.attached, namespace.is_leaving = False, True

            def left() -> None:
                namespace.is_leaving = False

            def leave() -> int | None:
                left()
                return self._controller.settings.keep(command)

            return self._when_quiet(command, [namespace], leave, left)
        return self._controller.settings.keep(command)

    def _when_quiet(
        self,
        command: Command,
        targets: list[Namespace],
        finish: Callable[[], int | None],
        ended: Callable[[], None] | None = None,
    ) -> int | None:
        """Ends a command with ``finish`` when what has begun in some namespaces has ended; no more begins there."""
        if not targets:
            return finish()
        *others, last = targets

        def end() -> None:
            self._controller.jobs.start(
                command, _nothing, lambda _: finish(), gate=last.gate, alone=True, blocks=False, ended=ended
            )

        command.queue.in_flight[command.entry.cid] = command
        self._quieten(others, end)
        return None

    def _quieten(self, targets: list[Namespace], then: Callable[[], None]) -> None:
        """Calls ``then`` when what has begun in some namespaces, one after the other, has ended."""
        if not targets:
            then()
            return
        first, *others = targets

        def go_on(_: object) -> int:
            self._quieten(others, then)
            return 0

        self._controller.jobs.start(None, _nothing, go_on, gate=first.gate, alone=True, blocks=False)

    def _format(self, command: Command) -> int | None:
        entry, namespaces = command.entry, self._controller.namespaces
        lba_format = entry.cdw10 & 0xF
        if lba_format >= len(LBA_SHIFTS) or entry.cdw10 & 0x3000:
            raise CommandFailed(Status.INVALID_FORMAT, location=40)
        if entry.cdw10 & 0x1F0:  # metadata and protection settings
            raise CommandFailed(Status.INVALID_FORMAT, location=40)
        if entry.cdw10 >> 9 & 7 not in (0, 1):  # secure erase: no cryptographic one
            raise CommandFailed(Status.INVALID_FIELD, location=41)
        if entry.nsid == BROADCAST_NSID:
            targets = [namespace for namespace in namespaces if namespace.attached]
        else:
            targets = [namespaces.existing(entry.nsid)]
        if any(namespace.formatting for namespace in targets):
            raise CommandFailed(Status.FORMAT_IN_PROGRESS, retry=True)
        if any(namespace.write_protected for namespace in targets):
            raise CommandFailed(Status.NAMESPACE_WRITE_PROTECTED)
        if not all(namespace.backend.size >> LBA_SHIFTS[lba_format] for namespace in targets):  # not one block
            raise CommandFailed(Status.INVALID_FORMAT, location=40)
        if not targets:
            return 0
        for namespace in targets:
            namespace.formatting = True

        def work() -> None:
            for namespace in targets:
                namespace.backend.discard(0, namespace.backend.size)
                namespace.backend.flush()

        def finish(_: object) -> int | None:
            for namespace in targets:
                namespace.uncorrectable = BlockRanges()
                if namespace.lba_format != lba_format:
                    namespace.set_format(lba_format)
            return self._controller.settings.keep(command)

        *others, last = targets

        def begin() -> None:
            if command.cancelled:  # there was a reset: the host will not expect its data to go now
                _unlock(targets)
                return
            self._controller.jobs.start(
                command,
                work,
                finish,
                gate=last.gate,
                alone=True,
                blocks=any(namespace.backend.flush_blocks for namespace in targets),
                write=True,
                ended=lambda: _unlock(targets),
            )

        command.queue.in_flight[command.entry.cid] = command
        self._quieten(others, begin)
        return None


def _unlock(targets: list[Namespace]) -> None:
    for namespace in targets:
        namespace.formatting = False


def _nothing() -> None:
    """Waiting was all there was to do."""
