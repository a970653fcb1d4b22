"""Before a host is given back: is everything of it at home, whole and usable? Then giving it back."""

from launch.release.check import Findings, Gap, check
from launch.release.give_back import Receipt, give_back

__all__ = ["Findings", "Gap", "Receipt", "check", "give_back"]
