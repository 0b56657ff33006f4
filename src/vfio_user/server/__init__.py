"""The device's side: what a device author subclasses, and what makes it available to clients.

==================  ======================================================================
``device``          ``Device``: regions, interrupts, DMA, deferred work
``pci_device``      ``PciDevice``: a PCI function as a class
``server``          ``Server``: an address, and one client after another
``session``         one client's connection, and ``Observer``, which is shown its messages
``message_path``    register accesses at the speed of the socket
``commands``        one function a command
``migration``       what a client makes of a device by setting its state
``saved_state``     a device's state as bytes
``deferred``        work put off, kept back while a device is stopped
``loop``            descriptors, timers, deferred calls: one thread's work
``watchdog``        names device code that runs too long
==================  ======================================================================
"""

from vfio_user.server.device import Device
from vfio_user.server.loop import EventLoop, Timer, Watch
from vfio_user.server.pci_device import PciDevice
from vfio_user.server.server import Server, run_servers

__all__ = ["Device", "EventLoop", "PciDevice", "Server", "Timer", "Watch", "run_servers"]
