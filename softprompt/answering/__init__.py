"""Answering: from questions to answers, for one batch or a file."""
