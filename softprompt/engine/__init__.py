"""How rows run through the base behind a front: the front, losses and decoding."""
