"""What a finished prompt is worth."""
