"""Training: the loop, its optimizer, schedule, checkpoints and log, and the search over runs."""
