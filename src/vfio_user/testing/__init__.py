"""What users need to test their own devices: a device and its client in one process, and a plugin for pytest.

==============  ===================================================================================
``in_process``  ``DeviceUnderTest``: a device, a client, a clock; no socket, no virtual machine
``plugin``      the fixtures ``vfio_device`` and ``vfio_client``, found by pytest itself
``leaks``       which file descriptors were opened and not closed
==============  ===================================================================================
"""

from vfio_user.testing.in_process import DeviceUnderTest, SimulatedClock
from vfio_user.testing.leaks import leaked_since, open_files

__all__ = ["DeviceUnderTest", "SimulatedClock", "leaked_since", "open_files"]
