"""LSI's 53C8xx SCSI controllers: registers, causes of interrupts, instructions of their processor. No behaviour.

Ref: "LSI53C895A PCI to Ultra2 SCSI Controller Technical Manual", LSI Logic, version 2.2; "SYM53C810A PCI-SCSI I/O
Processor Data Manual", Symbios Logic.
"""
