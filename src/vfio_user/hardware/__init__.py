"""Registers of real hardware, described once: the device, a driver and the tracer read the same. No behaviour."""
