"""Why the command cannot go on."""


class Failure(Exception):
    """What is wrong and where, in one line for the reader of the terminal; the command ends with exit code 2."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


def first_line(error: BaseException, most: int = 200) -> str:
    """The first line of an error's text, shortened; its type where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= most else text[: most - 1] + "…"


def listed(names: list[str], most: int = 8) -> str:
    """The first few names, in quotes."""
    shown = ", ".join(repr(name) for name in names[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown
