"""A timer on a PCI card: the driver writes how long, and gets an interrupt."""

from vfio_user import RO, RW1C, Field, MemoryBar, Msi, PciDevice, Register, RegisterBlock


class TimerRegisters(RegisterBlock):
    """What the driver sees in BAR 0."""

    identification = Register(0x0, access=RO, reset=0x7133_0001)
    delay = Register(0x4, doc="Milliseconds. Writing it starts the timer.")
    status = Register(0x8, fields=[Field("running", 0, access=RO), Field("expired", 1, access=RW1C)])
    expirations = Register(0xC, access=RO)


class Timer(PciDevice):
    """Interrupts when its time is up."""

    vendor_id, device_id, class_code = 0x1234, 0x7133, 0x08_80_00
    msi = Msi(vectors=1)
    bar0 = MemoryBar(size=4096, registers=TimerRegisters)

    @bar0.on_write("delay")
    def start(self, milliseconds: int) -> None:
        """The driver wrote the register; the device's own accesses call no handler."""
        self.bar0.status.running = 1
        self.call_later(milliseconds / 1000, self.expire)

    def expire(self) -> None:
        """Time is up. Everything of a device happens on one thread: nothing is to be locked."""
        self.bar0.status.running = 0
        self.bar0.status.expired = 1
        self.bar0.expirations += 1
        self.raise_interrupt()

    @bar0.on_write("status.expired")
    def acknowledge(self, expired: int) -> None:
        """The driver wrote the bit: a one cleared it, by its access policy."""
        if not expired:
            self.lower_interrupt()
