"""The closed world that the shipped base and rows are about: its facts, its questions and the manners of answering."""
