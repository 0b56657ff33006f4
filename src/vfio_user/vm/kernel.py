"""Turns a kernel as distributions ship it into the form QEMU starts fastest.

On x86 a ``vmlinuz`` is a *bzImage*: a small program that unpacks the kernel proper. Under TCG that program is most
of the boot (5.3 s of a boot to power-off, against 2.0 s when QEMU is given the unpacked ELF), so it is unpacked here,
once. QEMU enters an unpacked kernel through its PVH note; a kernel without one is left as it is.

Spec: Linux ``Documentation/arch/x86/boot.rst``, fields ``setup_sects``, ``payload_offset``, ``payload_length``.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import subprocess
import zlib

from vfio_user.errors import VmUnavailableError
from vfio_user.vm.elf import ElfFile, is_elf

__all__ = ["bootable_kernel", "decompress", "unpack_bzimage"]

_SETUP_MAGIC = b"HdrS"


def decompress(content: bytes) -> bytes:
    """Unpacks gzip, xz, lzma, bzip2, zstd or lz4 data, told by its first bytes; bytes after its end are ignored.

    Raises:
        VmUnavailableError: the data is zstd or lz4 and this machine has no such program.
        ValueError: it is none of these, or damaged.
    """
    try:
        if content[:2] == b"\x1f\x8b":
            return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(content)
        if content[:6] == b"\xfd7zXZ\0":
            return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(content)
        if content[:3] == b"\x5d\0\0":
            return lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(content)
        if content[:3] == b"BZh":
            return bz2.BZ2Decompressor().decompress(content)
    except (zlib.error, lzma.LZMAError, gzip.BadGzipFile, OSError) as error:
        raise ValueError(f"compressed data is damaged: {error}") from error
    if content[:4] == b"\x28\xb5\x2f\xfd":
        return _pipe_through("zstd", content)
    if content[:4] in (b"\x02\x21\x4c\x18", b"\x04\x22\x4d\x18"):
        return _pipe_through("lz4", content)
    raise ValueError(f"compressed with something unknown: begins {content[:6].hex()}")


def _pipe_through(program: str, content: bytes) -> bytes:
    try:
        outcome = subprocess.run([program, "-dc"], input=content, capture_output=True, check=False)
    except FileNotFoundError:
        raise VmUnavailableError(f"the kernel is packed with {program}, which is missing: install {program}") from None
    # Bytes after the end make the program fail once it has written everything; nothing written is the real failure.
    if not outcome.stdout:
        raise ValueError(f"{program} could not unpack it: {outcome.stderr.decode(errors='replace').strip()}")
    return outcome.stdout


def unpack_bzimage(content: bytes) -> bytes:
    """Takes the ELF kernel out of an x86 bzImage.

    Raises:
        ValueError: the bytes are no bzImage, or what is in it is no ELF kernel.
        VmUnavailableError: the program to unpack it is missing.
    """
    if content[0x202:0x206] != _SETUP_MAGIC:
        raise ValueError("not an x86 bzImage: it has no boot header at 0x202")
    setup_sectors = content[0x1F1] or 4  # "for backwards compatibility, if setup_sects is 0, the real value is 4"
    offset, length = struct.unpack_from("<II", content, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    kernel = decompress(content[start : start + length])
    if not is_elf(kernel):
        raise ValueError(f"the bzImage unpacks to something that is no 64-bit ELF kernel: begins {kernel[:6].hex()}")
    return kernel


def bootable_kernel(content: bytes) -> bytes:
    """The fastest form of a kernel that QEMU's ``-kernel`` still takes: unpacked where that works, else unchanged."""
    if content[0x202:0x206] != _SETUP_MAGIC:
        return content  # other architectures: arm64 ships a plain Image
    kernel = unpack_bzimage(content)
    return kernel if ElfFile(kernel).has_pvh_entry else content
