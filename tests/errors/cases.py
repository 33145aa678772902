"""What every message of ours must be, whoever raises it, and whatever its words."""

import re

LONGEST = 520
ADVICE = re.compile(
    r'\b(add|build|call|check|choose|convert|correct|did you mean|download|end|finish|get|give|install|leave|load|make'
    r'|move|remove|repeat|resume|run|stack|takes?|train|use|write)\b',
    re.IGNORECASE,
)
"""A word by which a sentence tells what is accepted or what to do."""


def check_sentence(message: str, argument: str, given: str = '', *remedy: str) -> None:
    """Check that a message is one sentence that names the argument, the value and the remedy, in any words.

    Args:
        message: what the user reads.
        argument: name of the argument, option, key or thing that is wrong.
        given: the value as it was given; empty where the fault is that nothing was.
        remedy: names and values that are accepted; without any, some advice is asked for.
    """
    assert message and '\n' not in message.strip(), f'not one line: {message!r}'
    assert len(message) <= LONGEST, f'{len(message)} characters: {message!r}'
    assert 'Traceback' not in message and not re.search(r'File ".*", line \d+', message)
    assert re.search(r'[.?)!]$', message.strip()), f'no sentence: {message!r}'
    missing = [piece for piece in (argument, given, *remedy) if not names(message, piece)]
    assert not missing, f'{missing} not in {message!r}'
    assert remedy or ADVICE.search(message), f'no advice: {message!r}'


def names(message: str, piece: str) -> bool:
    """Whether a name or value stands in a message as a whole: 4 is not in 14, 4.5 or -4."""
    return re.search(rf'(?<![\w-])(?<!\d\.){re.escape(piece)}(?!\w|\.\d)', message, re.IGNORECASE) is not None
