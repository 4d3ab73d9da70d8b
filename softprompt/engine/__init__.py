"""How rows run through the base behind a front: batches, attention, losses and decoding."""
