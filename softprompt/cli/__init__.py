"""The commands: each reads its command line and prints text."""
