"""Configuration: every option, declared once, and the command line that is made of the options."""
