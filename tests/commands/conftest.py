"""Made-up data sets for the commands that look at some."""

from helpers.image_sets import home, mirror, served

__all__ = ["home", "mirror", "served"]
