"""Register descriptions in and out of other formats; what one side has no words for becomes notes.

Out: a C header, Markdown, one HTML page, text, JSON, and Python source to go on with. In: SystemRDL 2.0, CMSIS-SVD.
"""

from vfio_user.pci.registers.interchange.c_header import to_c_header
from vfio_user.pci.registers.interchange.documents import to_html, to_markdown
from vfio_user.pci.registers.interchange.notes import Exported, Imported, Note
from vfio_user.pci.registers.interchange.python_source import to_python
from vfio_user.pci.registers.interchange.svd import from_svd, svd_peripherals
from vfio_user.pci.registers.interchange.systemrdl import from_systemrdl
from vfio_user.pci.registers.interchange.text import to_json, to_text

__all__ = [
    "Exported",
    "Imported",
    "Note",
    "from_svd",
    "from_systemrdl",
    "svd_peripherals",
    "to_c_header",
    "to_html",
    "to_json",
    "to_markdown",
    "to_python",
    "to_text",
]
