"""How data is read by its name, checked as rows, split and encoded as token ids."""
