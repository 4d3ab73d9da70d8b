"""How a prompt moves: the rule of an update, and its rate and rows at each step."""
