"""The notebooks' "Your turn" tasks: stubs, solutions, and checks that say which error an answer makes."""

from metasp_lite.exercises import check

__all__ = ["check"]
