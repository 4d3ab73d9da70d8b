"""The machine around a run: files, names of data and models, the hub, and the process."""
