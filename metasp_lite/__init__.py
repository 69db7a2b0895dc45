"""metasp_lite: example influence for continual learning, made understandable, checkable and usable."""

__version__ = "0.1.0"
