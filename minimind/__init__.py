"""MiniMind's trainers: they run inside the environment on the host and know nothing of the launcher."""

__version__ = "0.1.0"
