"""The frozen model: find it, load it, tell which one it is."""
