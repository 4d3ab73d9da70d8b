"""Rows through the base behind a prompt: batches, attention, losses, decoding."""
