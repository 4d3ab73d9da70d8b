"""Steps: the loop, its optimizer, schedule, checkpoints and log."""
