"""From rows to token ids: how a conversation is written as text, which tokens are learnt, and where a row is cut."""
