"""Identify: what the controller and its namespaces are. Spec: 5.17."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vfio_user.devices.nvme.command import Command, CommandFailed
from vfio_user.devices.nvme.events import REQUEST_LIMIT
from vfio_user.devices.nvme.firmware import SLOTS
from vfio_user.devices.nvme.health import ERROR_LOG_ENTRIES, NOMINAL_TEMPERATURE
from vfio_user.devices.nvme.namespaces import LBA_SHIFTS, MAX_NAMESPACES, Namespace
from vfio_user.devices.nvme.nvm_commands import COPY_BLOCKS, COPY_RANGE_BLOCKS, COPY_RANGES
from vfio_user.hardware.nvme.features import AsyncEventConfiguration
from vfio_user.hardware.nvme.identify import (
    BROADCAST_NSID,
    IDENTIFY_SIZE,
    AdminCommandSupport,
    Cns,
    CommandSetIdentifier,
    IdentifyController,
    IdentifyNamespace,
    IdentifyNamespaceIndependent,
    IdentifyNvmController,
    IdentifyNvmNamespace,
    LbaFormat,
    NamespaceIdentifierType,
    NvmCommandSupport,
    controller_list,
    namespace_descriptors,
    namespace_list,
)
from vfio_user.hardware.nvme.opcodes import AdminOpcode
from vfio_user.hardware.nvme.status import Status

if TYPE_CHECKING:
    from vfio_user.devices.nvme.controller import Nvme

__all__ = ["CONTROLLER_ID", "Identify"]

#: CNTLID: the only controller of its subsystem.
CONTROLLER_ID = 1

_AT_CNS, _AT_CNTID, _AT_CSI = 40, 42, 47

#: Every answer's command set: those for which there is more than one kind of answer.
_WITH_COMMAND_SET = {
    Cns.COMMAND_SET_NAMESPACE,
    Cns.COMMAND_SET_CONTROLLER,
    Cns.COMMAND_SET_ACTIVE_NAMESPACE_LIST,
    Cns.COMMAND_SET_ALLOCATED_NAMESPACE_LIST,
    Cns.COMMAND_SET_ALLOCATED_NAMESPACE,
}


class Identify:
    """The Identify command of a controller.

    Args:
        controller: whose.
    """

    def __init__(self, controller: Nvme) -> None:
        self._controller = controller
        self._pages: dict[int, Callable[[Command], bytes]] = {
            Cns.NAMESPACE: self._namespace,
            Cns.CONTROLLER: lambda _: self.controller_page().pack(),
            Cns.ACTIVE_NAMESPACE_LIST: self._active_list,
            Cns.NAMESPACE_DESCRIPTORS: self._descriptors,
            Cns.COMMAND_SET_NAMESPACE: self._nvm_namespace,
            Cns.COMMAND_SET_CONTROLLER: self._nvm_controller,
            Cns.COMMAND_SET_ACTIVE_NAMESPACE_LIST: self._active_list,
            Cns.NAMESPACE_INDEPENDENT: self._independent,
            Cns.ALLOCATED_NAMESPACE_LIST: self._allocated_list,
            Cns.ALLOCATED_NAMESPACE: self._allocated_namespace,
            Cns.NAMESPACE_CONTROLLER_LIST: self._namespace_controllers,
            Cns.CONTROLLER_LIST: self._controllers,
            Cns.COMMAND_SET_ALLOCATED_NAMESPACE_LIST: self._allocated_list,
            Cns.COMMAND_SET_ALLOCATED_NAMESPACE: self._allocated_nvm_namespace,
            Cns.COMMAND_SETS: self._command_sets,
        }

    def handlers(self) -> dict[int, Callable[[Command], int | None]]:
        """The admin commands handled here."""
        return {AdminOpcode.IDENTIFY: self._identify}

    def _identify(self, command: Command) -> int:
        cns = command.entry.cdw10 & 0xFF
        page = self._pages.get(cns)
        if page is None:
            raise CommandFailed(Status.INVALID_FIELD, location=_AT_CNS)
        if cns in _WITH_COMMAND_SET and command.entry.cdw11 >> 24 != CommandSetIdentifier.NVM:
            raise CommandFailed(Status.INVALID_FIELD, location=_AT_CSI)
        self._controller.give(command, page(command))
        return 0

    # The controller.

    def controller_page(self) -> IdentifyController:
        """CNS 01h."""
        controller = self._controller
        function, namespaces = controller.function.config, controller.namespaces
        support = (
            AdminCommandSupport.FORMAT_NVM
            | AdminCommandSupport.FIRMWARE
            | AdminCommandSupport.NAMESPACE_MANAGEMENT
            | AdminCommandSupport.DEVICE_SELF_TEST
        )
        if controller.doorbells.takes_buffers:
            support |= AdminCommandSupport.DOORBELL_BUFFER_CONFIG
        nvm = NvmCommandSupport.COMPARE | NvmCommandSupport.WRITE_UNCORRECTABLE | NvmCommandSupport.DATASET_MANAGEMENT
        nvm |= NvmCommandSupport.WRITE_ZEROES | NvmCommandSupport.FEATURE_SAVE_SELECT | NvmCommandSupport.TIMESTAMP
        nvm |= NvmCommandSupport.VERIFY | NvmCommandSupport.COPY
        return IdentifyController(
            vid=function.read(0x00, 2),
            ssvid=function.read(0x2C, 2),
            sn=controller.serial,
            mn=controller.model,
            fr=controller.firmware.revision,
            rab=6,
            mdts=(controller.max_transfer // 4096).bit_length() - 1,
            cntlid=CONTROLLER_ID,
            ver=int(controller.bar0.vs),
            oaes=AsyncEventConfiguration.NAMESPACE_ATTRIBUTE | AsyncEventConfiguration.FIRMWARE_ACTIVATION,
            cntrltype=1,
            nvmsr=1,
            oacs=support,
            acl=7,
            aerl=REQUEST_LIMIT - 1,
            frmw=SLOTS << 1 | 1 << 4,
            lpa=1 << 1 | 1 << 2,  # commands supported and effects; offsets
            elpe=ERROR_LOG_ENTRIES - 1,
            wctemp=NOMINAL_TEMPERATURE + 30,
            cctemp=NOMINAL_TEMPERATURE + 40,
            tnvmcap=namespaces.total_capacity,
            unvmcap=namespaces.unallocated_capacity,
            edstt=1,
            dsto=1,
            fwug=1,
            kas=1,
            sqes=0x66,
            cqes=0x44,
            nn=MAX_NAMESPACES,
            mnan=MAX_NAMESPACES,
            oncs=nvm,
            fuses=1,
            vwc=1 | 3 << 1,  # there is one, and Flush takes the broadcast NSID
            cdfs=1,
            sgls=1 | 1 << 16 | 1 << 18,  # bytes in any alignment; bit bucket; longer than the data
            subnqn=controller.subnqn.encode() + b"\0",
            psd0=bytes([0xC4, 0x09]),  # 25 W
        )

    def _nvm_controller(self, command: Command) -> bytes:
        return IdentifyNvmController(dmrl=255, dmrsl=0xFFFF_FFFF).pack()

    def _controllers(self, command: Command) -> bytes:
        return controller_list([CONTROLLER_ID] if command.entry.cdw10 >> 16 <= CONTROLLER_ID else [])

    def _command_sets(self, command: Command) -> bytes:
        if command.entry.cdw10 >> 16 not in (0xFFFF, CONTROLLER_ID):
            raise CommandFailed(Status.INVALID_FIELD, location=_AT_CNTID)
        return (1 << CommandSetIdentifier.NVM).to_bytes(8, "little").ljust(IDENTIFY_SIZE, b"\0")

    # Namespaces.

    def _active(self, nsid: int) -> Namespace | None:
        """The namespace; None, for a page of zeroes, where it is inactive."""
        if not 1 <= nsid <= MAX_NAMESPACES:
            raise CommandFailed(Status.INVALID_NAMESPACE_OR_FORMAT, location=4)
        namespace = self._controller.namespaces.get(nsid)
        return namespace if namespace is not None and namespace.attached else None

    def _allocated(self, nsid: int) -> Namespace | None:
        if not 1 <= nsid <= MAX_NAMESPACES:
            raise CommandFailed(Status.INVALID_NAMESPACE_OR_FORMAT, location=4)
        return self._controller.namespaces.get(nsid)

    def _namespace(self, command: Command) -> bytes:
        if command.entry.nsid == BROADCAST_NSID:
            common = IdentifyNamespace()
            _set_formats(common)
            return common.pack()
        return _namespace_page(self._active(command.entry.nsid))

    def _allocated_namespace(self, command: Command) -> bytes:
        return _namespace_page(self._allocated(command.entry.nsid))

    def _nvm_namespace(self, command: Command) -> bytes:
        if command.entry.nsid != BROADCAST_NSID:
            self._active(command.entry.nsid)
        return IdentifyNvmNamespace().pack()

    def _allocated_nvm_namespace(self, command: Command) -> bytes:
        self._allocated(command.entry.nsid)
        return IdentifyNvmNamespace().pack()

    def _independent(self, command: Command) -> bytes:
        namespace = self._active(command.entry.nsid)
        if namespace is None:
            return bytes(IDENTIFY_SIZE)
        return IdentifyNamespaceIndependent(
            nsfeat=1 << 3, nsattr=int(namespace.write_protected), nstat=int(not namespace.formatting)
        ).pack()

    def _descriptors(self, command: Command) -> bytes:
        namespace = self._controller.namespaces.active(command.entry.nsid)
        return namespace_descriptors(
            [
                (NamespaceIdentifierType.NGUID, namespace.nguid),
                (NamespaceIdentifierType.UUID, namespace.uuid),
                (NamespaceIdentifierType.COMMAND_SET, bytes([CommandSetIdentifier.NVM])),
            ]
        )

    def _active_list(self, command: Command) -> bytes:
        return self._list(command, attached=True)

    def _allocated_list(self, command: Command) -> bytes:
        return self._list(command, attached=False)

    def _list(self, command: Command, *, attached: bool) -> bytes:
        after = command.entry.nsid
        if after >= BROADCAST_NSID - 1:
            raise CommandFailed(Status.INVALID_NAMESPACE_OR_FORMAT, location=4)
        found = [ns.nsid for ns in self._controller.namespaces if ns.nsid > after and (ns.attached or not attached)]
        return namespace_list(found)

    def _namespace_controllers(self, command: Command) -> bytes:
        nsid = command.entry.nsid
        if nsid == BROADCAST_NSID:
            raise CommandFailed(Status.INVALID_FIELD, location=4)
        namespace = self._allocated(nsid)
        attached = namespace is not None and namespace.attached and command.entry.cdw10 >> 16 <= CONTROLLER_ID
        return controller_list([CONTROLLER_ID] if attached else [])


def _set_formats(page: IdentifyNamespace) -> None:
    """What all namespaces have in common."""
    page.nlbaf = len(LBA_SHIFTS) - 1
    page.lbaf = tuple(int.from_bytes(LbaFormat(lbads=shift).pack(), "little") for shift in LBA_SHIFTS)


def _namespace_page(namespace: Namespace | None) -> bytes:
    page = IdentifyNamespace()
    if namespace is None:
        return page.pack()
    _set_formats(page)
    page.nsze = page.ncap = page.nuse = namespace.blocks
    page.nvmcap = namespace.blocks << namespace.shift
    page.nsfeat = 1 << 3 | 1 << 4  # identifiers are not reused; preferred granularities
    page.flbas = namespace.lba_format
    page.dlfeat = 1 | 1 << 3  # what is deallocated reads as zeroes; Write Zeroes deallocates
    preferred = max(namespace.backend.block_size >> namespace.shift, 1) - 1
    page.npwg = page.npwa = page.nows = preferred
    page.npdg = page.npda = max(4096 >> namespace.shift, 1) - 1
    page.mssrl, page.mcl, page.msrc = COPY_RANGE_BLOCKS, COPY_BLOCKS, COPY_RANGES - 1
    page.nsattr = int(namespace.write_protected)
    page.nguid = namespace.nguid
    return page.pack()
