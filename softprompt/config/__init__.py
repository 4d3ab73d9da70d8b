"""What may be asked for: every option once, and the command line made of them."""
