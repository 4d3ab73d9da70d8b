"""Analysis: how good a finished prompt is, and what it looks like."""
