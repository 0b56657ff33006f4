"""Drivers of the shipped devices, in Python: for tests, benchmarks, and users without a virtual machine."""
