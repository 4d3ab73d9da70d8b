"""Training: the loop, its optimizer, checkpoints and log, and the search over runs."""
