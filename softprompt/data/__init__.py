"""From a name to rows to token ids."""
