"""The machine around a run: disk, names, network, process."""
