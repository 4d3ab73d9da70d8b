"""How data is read by its name, checked as rows, and split."""
