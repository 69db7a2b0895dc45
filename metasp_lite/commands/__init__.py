"""The command line, a module a command: options (shared ones in ``options``), what is printed, and where
results go.

What computes is imported by ``main`` and not before: help and a misspelt option answer at once.
"""

__all__: list[str] = []
