"""Pure builders of command lines: each returns a list and touches no process, clock, file or socket."""
