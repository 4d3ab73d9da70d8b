"""The frozen base model: how to find it, load it and tell which one it is."""
