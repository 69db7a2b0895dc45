"""The command line's rooms, a module a command: options, what is printed, and where results go."""

__all__: list[str] = []
