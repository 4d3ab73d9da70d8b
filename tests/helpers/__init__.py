"""What tests of several rooms share: models, rows, prompts, trainers, and the commands run as a user does."""
