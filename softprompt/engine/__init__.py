"""How rows run through the base behind a prompt: batches, attention, losses and decoding."""
