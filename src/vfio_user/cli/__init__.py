"""The command ``vfio-user``: parse, call, print. What it does is in the packages below; how it looks is here.

Each command is a module with ``add_arguments(parser)`` and ``run(arguments) -> exit status``, imported only when it is
the one asked for, so that ``serve`` listens in about the time the interpreter takes to start.
"""
