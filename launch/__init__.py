"""The launcher: runs on the laptop, asks hosts over ssh, and never imports torch."""
