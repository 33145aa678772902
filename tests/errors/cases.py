"""What every message of ours must be, whoever raises it."""

import re

LONGEST = 520


def check_sentence(message: str, *expected: str) -> None:
    """One sentence on one line that holds every expected piece (given, accepted, next step) and no traceback."""
    assert message and '\n' not in message.strip(), f'not one line: {message!r}'
    assert len(message) <= LONGEST, f'{len(message)} characters: {message!r}'
    assert 'Traceback' not in message and not re.search(r'File ".*", line \d+', message)
    assert re.search(r'[.?)!]$', message.strip()), f'no sentence: {message!r}'
    missing = [piece for piece in expected if piece not in message]
    assert not missing, f'{missing} not in {message!r}'
