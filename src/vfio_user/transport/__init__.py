"""What moves bytes and file descriptors between two processes, or between two ends in one.

``address`` reads the text that names an end point. A server's connections come from ``listener`` (with
``port_listener`` for TCP and vsock, and ``systemd``), a client's from ``connect``; what their sockets have in common is
in ``stream_socket``. ``channel`` is what a connection looks like to whoever uses it, and ``memory`` is one without a
kernel in between. Nothing here looks into a message. OS errors become errors of this package here, and nowhere above.
"""
