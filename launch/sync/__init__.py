"""Moving files between the laptop and a host: list, compare, transfer, verify, publish."""

from launch.sync.home import Report, sync_out
from launch.sync.laptop import Push, compare, sync_in
from launch.sync.mirror import Mirrored, mirror, remote_of
from launch.sync.rounds import Rounds

__all__ = ["Mirrored", "Push", "Report", "Rounds", "compare", "mirror", "remote_of", "sync_in", "sync_out"]
