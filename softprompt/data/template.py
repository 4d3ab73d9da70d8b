"""The text around a row: what stands in front of the response."""


def format_question(instruction: str, input: str) -> str:
    """The text before the response. An empty input leaves no blank line."""
    return "\n".join(["Human: " + instruction, input]).strip() + "\n\nAssistant: "
