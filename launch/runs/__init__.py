"""Runs, seen from the laptop: start, observe, follow, stop, resume. What is known of a run is in its directory."""
