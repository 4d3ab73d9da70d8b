"""The [P, H] tensor, the ways to start it, and its file."""
