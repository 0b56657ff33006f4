"""NVM Express: what a controller, its driver and a tracer have to know of each other. Descriptions, no behaviour.

``registers``, ``entries`` (queue entries), ``opcodes``, ``status``, ``data_pointers`` (PRP and SGL), ``identify``,
``features``, ``logs``.

Ref: NVM Express Base Specification 2.0, NVM Command Set Specification 1.0, NVMe over PCIe Transport Specification 1.0.
Sections in these modules are of the Base Specification where no other is named.
"""
