"""Values that come as text: a form's fields, a table's cells."""

import re

_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_NUMBERS = {int: r"[+-]?\d{1,20}", float: r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?"}
_NAMES = {bool: "true or false", int: "a whole number", float: "a number"}


def typed(text: str, kind: type) -> bool | int | float | str:
    """The text as a bool, int, float or str. Raises ValueError that says what was expected."""
    if kind is str:
        return text
    if kind is bool and text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    if kind is bool or not re.fullmatch(_NUMBERS[kind], text, re.ASCII):
        raise ValueError(_NAMES[kind])
    return int(text) if kind is int else float(text)


def short(text: str) -> str:
    """The text as a message quotes it."""
    return repr(text if len(text) <= 40 else text[:40] + "...")
