"""The prompt as a `[P, H]` tensor, the ways to initialise it, and its file."""
