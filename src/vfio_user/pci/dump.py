"""Configuration space as text that ``lspci -F`` reads."""

from __future__ import annotations

__all__ = ["format_lspci"]


def format_lspci(config: bytes, *, address: str = "00:00.0", title: str = "") -> str:
    """Writes configuration space as ``lspci -xxxx`` does; ``lspci -vvv -F file`` decodes it.

    Args:
        config: 64, 256 or 4096 bytes, from offset 0 on.
        address: bus, device and function, in hex.
        title: a description; lspci ignores it.

    Returns:
        Lines of 16 bytes under a heading, with a blank line at the end.
    """
    lines = [f"{address} {title or 'PCI function'}"]
    lines += [f"{at:02x}: {config[at : at + 16].hex(' ')}" for at in range(0, len(config), 16)]
    return "\n".join(lines) + "\n\n"
