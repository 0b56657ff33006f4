"""The device's side: what a device author subclasses, and what makes it available to clients.

======================  ======================================================================
``device``              ``Device``: regions, interrupts, DMA, deferred work
``pci_device``          ``PciDevice``: a PCI function as a class
``server``              ``Server``: an address, and one client after another
``session``             one client's connection, and ``Observer``, which is shown its messages
``reception``           the receiving half of it
``message_path``        register accesses at the speed of the socket
``commands``            one function a command
``message_dma``         the client's memory by messages, and ``twin_socket`` for them
``doorbells``           eventfds a client rings, and ``io_sockets`` it accesses registers through
``quiesce``             commands that wait until the device is quiet
``migration``           what a client makes of a device by setting its state
``migration_features``  by today's protocol
``migration_region``    by that of 0.9.1
``saved_state``         a device's state as bytes
``deferred``            work put off, kept back while a device is stopped
``loop``                descriptors, timers, deferred calls: one thread's work
``watchdog``            names device code that runs too long
======================  ======================================================================
"""

from vfio_user.server.device import Device
from vfio_user.server.loop import EventLoop, Timer, Watch
from vfio_user.server.pci_device import PciDevice
from vfio_user.server.server import Server, run_servers

__all__ = ["Device", "EventLoop", "PciDevice", "Server", "Timer", "Watch", "run_servers"]
