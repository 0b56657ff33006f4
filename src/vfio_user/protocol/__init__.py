"""The wire, without any I/O: bytes in, typed messages out, and back.

Theory of operation
-------------------

Two roles share one stream socket. The *client* (QEMU, a test) made the connection and drives the device; the *server*
is the device. Either sends *commands*, and each command is answered by one *reply* with the same id, unless it was
marked ``NO_REPLY``: that one is never answered, not even when it fails.

A message is a 16-byte header (``header``) and a payload; file descriptors travel with its first byte. ``framing`` cuts
the stream into messages and keeps descriptors with theirs. One module holds the payloads of each family of commands::

    family     commands                                          sent by   payloads in
    version    VERSION                                           client    version
    device     DEVICE_GET_INFO, DEVICE_RESET                     client    device
    regions    DEVICE_GET_REGION_INFO, REGION_READ,              client    region
               REGION_WRITE, REGION_WRITE_MULTI
               DEVICE_GET_REGION_IO_FDS                          client    region_io_fds
    interrupts DEVICE_GET_IRQ_INFO, DEVICE_SET_IRQS              client    irq
    memory     DMA_MAP, DMA_UNMAP                                client    dma
               DMA_READ, DMA_WRITE                               server    dma
    migration  DEVICE_FEATURE                                    client    feature
               MIG_DATA_READ, MIG_DATA_WRITE                     client    migration
               DIRTY_PAGES (of 0.9.1)                            client    dirty_pages

What is allowed when:

* The first message of a connection is the client's VERSION, without descriptors. Nothing else may come before its
  reply, and it cannot come twice. A VERSION that cannot be agreed with is answered, and ends the connection.
* After that a client may send any of its commands at any time, several without waiting for replies. A server carries
  them out in the order they came: a read sees every write before it, posted ones included.
* REGION_WRITE_MULTI is sent only to a server that said ``write_multiple``; a transfer is no larger than what the other
  end said in ``max_data_xfer_size``, a message carries no more descriptors than its ``max_msg_fds``.
* Descriptors come with DMA_MAP (one, of the memory) and DEVICE_SET_IRQS (one for each vector), and go with the replies
  to DEVICE_GET_REGION_INFO and DEVICE_GET_REGION_IO_FDS. Wherever else they turn up, the receiver closes them.
* Whoever waits for a reply must be ready for the other end's command first: QEMU holds a lock the reply to a region
  access releases, while the server's DMA_READ waits for that lock.

Two kinds of fault. A payload that is wrong is a ``RemoteProtocolError``: its command fails with EINVAL, and the next
message is read as if nothing had happened. A stream that cannot be cut any more, or a VERSION nobody can agree with
(``FramingError``, ``VersionError``), is answered as well, and then the connection is closed.

Decoders accept what every real peer sends, and raise nothing but ``RemoteProtocolError`` whatever the bytes are; any
other exception is a bug. They judge the form of a message only: whether the device has that region, or those vectors,
is the receiver's affair. Numbers a peer may invent (indexes, flags) are kept as they came.

Spec: vfio-user 0.9.1 (2021), and the text QEMU ships as ``docs/interop/vfio-user.rst``.
"""
