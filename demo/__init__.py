"""The demo: its texts, its data generator and its driver."""
