"""Messages in words: ``decode`` turns bytes into lines, ``observer`` prints those of a running server."""
