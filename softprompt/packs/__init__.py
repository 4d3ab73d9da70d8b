"""Rows side by side in one pass, and the attention that keeps them apart."""
