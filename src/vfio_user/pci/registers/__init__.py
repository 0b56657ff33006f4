"""The register language: describe a register block once; emulation, drivers, traces and documents read it.

The reference is ``docs/registers.md``.
"""

from typing import TYPE_CHECKING

from vfio_user._lazy import lazy_names
from vfio_user.pci.registers.block import Placement, RegisterBlock
from vfio_user.pci.registers.declaration import MERGE, REJECT, SPLIT, AccessRule
from vfio_user.pci.registers.fields import Field
from vfio_user.pci.registers.hooks import (
    Hook,
    HookKind,
    Hooks,
    after_read,
    before_write,
    on_change,
    on_read,
    on_write,
)
from vfio_user.pci.registers.policies import (
    CONST,
    COUNTER,
    COUNTER_RC,
    COUNTER_WRAP,
    RC,
    RO,
    RS,
    RSVDP,
    RSVDZ,
    RW,
    RW1C,
    RW1S,
    RW1T,
    RWRC,
    W0C,
    W0S,
    W1P,
    WO,
    Access,
    ReadEffect,
    WriteEffect,
)
from vfio_user.pci.registers.register import Register
from vfio_user.pci.registers.reset import ResetKind
from vfio_user.pci.registers.unmodelled import (
    IGNORE,
    LOG_ALL,
    LOG_ONCE,
    RAISE,
    Unmodelled,
    UnmodelledAccess,
    UnmodelledAccesses,
)
from vfio_user.pci.registers.values import BlockArray, RegisterArray, RegisterValue
from vfio_user.pci.registers.views import Alias, RegisterFile

if TYPE_CHECKING:
    from vfio_user.pci.registers.description import Located, RegisterDescription, describe_access, locate, walk
    from vfio_user.pci.registers.watchdog import Spin, SpinWatch

__all__ = [
    "CONST",
    "COUNTER",
    "COUNTER_RC",
    "COUNTER_WRAP",
    "IGNORE",
    "LOG_ALL",
    "LOG_ONCE",
    "MERGE",
    "RAISE",
    "RC",
    "REJECT",
    "RO",
    "RS",
    "RSVDP",
    "RSVDZ",
    "RW",
    "RW1C",
    "RW1S",
    "RW1T",
    "RWRC",
    "SPLIT",
    "W0C",
    "W0S",
    "W1P",
    "WO",
    "Access",
    "AccessRule",
    "Alias",
    "BlockArray",
    "Field",
    "Hook",
    "HookKind",
    "Hooks",
    "Located",
    "Placement",
    "ReadEffect",
    "Register",
    "RegisterArray",
    "RegisterBlock",
    "RegisterDescription",
    "RegisterFile",
    "RegisterValue",
    "ResetKind",
    "Spin",
    "SpinWatch",
    "Unmodelled",
    "UnmodelledAccess",
    "UnmodelledAccesses",
    "WriteEffect",
    "after_read",
    "before_write",
    "describe_access",
    "locate",
    "on_change",
    "on_read",
    "on_write",
    "walk",
]

__getattr__ = lazy_names(
    __name__,
    {
        "description": ["Located", "RegisterDescription", "describe_access", "locate", "walk"],
        "watchdog": ["Spin", "SpinWatch"],
    },
)
