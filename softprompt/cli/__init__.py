"""Words in, text out: the commands."""
