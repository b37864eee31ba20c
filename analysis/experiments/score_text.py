"""Where the sentence of a reply ends in these studies: before a score that the model writes behind it.

The examples in context show "[Score: 1]" after each sentence, and models write one, too; it is no part of the
sentence that is pooled. The engine is handed the rule with each reply: ``Sampling(..., rule=before_score)``.
"""

from __future__ import annotations

import re

from analysis.engine.replies import INCOMPLETE, Bounds

# "[Score 1", "Score: 1", "(score = 0)"; a bracket or a colon tells it from the word in a sentence
_SCORE = re.compile(r"[\[(<*\s]*\bscore\s*[:=]|\s*[\[(<][\[(<*\s]*score(?=[^a-z])", re.IGNORECASE)
_BROKEN_OFF = re.compile(r"\s*[\[(<][\[(<*\s]*(?:s(?:c(?:o(?:re?)?)?)?)?$", re.IGNORECASE)
_SCORE_START = re.compile(r"[\s\[(<*]*(?:\bs(?:c(?:o(?:r(?:e\s*)?)?)?)?)?$", re.IGNORECASE)


def before_score(text: str, final: bool = True) -> Bounds:
    """Return where the sentence starts and ends in a reply; a score text settles it.

    Args:
        text: the reply so far.
        final: False while more may come; then an end that may become a score is not counted yet.
    """
    match = _SCORE.search(text)
    body = text[: match.start()] if match else text
    if final and not match:
        match = _BROKEN_OFF.search(body)
        body = body[: match.start()] if match else body
    elif not match:
        body = body.rstrip(INCOMPLETE)
        beginning = _SCORE_START.search(body)
        body = body[: beginning.start()] if beginning else body
    stop = len(body.rstrip())
    start = min(len(body) - len(body.lstrip()), stop)
    return Bounds(start, stop, match is not None)
