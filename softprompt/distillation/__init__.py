"""A text that becomes a prompt: its answers, its questions, the run that learns from it, and what came of it."""
