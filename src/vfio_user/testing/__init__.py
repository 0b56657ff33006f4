"""What users need to test their own devices: a device and its client in one process, and a plugin for pytest.

===============  ===================================================================================
``in_process``   ``DeviceUnderTest``: a device, a client, a clock; no socket, no virtual machine
``plugin``       the fixtures ``vfio_device`` and ``vfio_client``, found by pytest itself
``conformance``  whether a server, or a client, keeps to the protocol
``leaks``        which file descriptors were opened and not closed
===============  ===================================================================================
"""

from typing import TYPE_CHECKING

from vfio_user._lazy import lazy_names
from vfio_user.testing.leaks import leaked_since, open_files

if TYPE_CHECKING:
    from vfio_user.testing.in_process import DeviceUnderTest, SimulatedClock

__all__ = ["DeviceUnderTest", "SimulatedClock", "leaked_since", "open_files"]

__getattr__ = lazy_names(__name__, {"in_process": ["DeviceUnderTest", "SimulatedClock"]})
