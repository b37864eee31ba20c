"""Bad requests are refused before any token is forwarded, with what was given and what is allowed.

A request that is a slip in the code that makes it is a BadRequest; what a user can mend, a prompt longer than
the model's context, is a UserError.
"""

from __future__ import annotations

import numbers
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int64

from analysis.base.errors import UserError
from analysis.engine.context import Context
from analysis.engine.replies import Sampling
from analysis.engine.request import Request
from analysis.engine.steering import Steering


class BadRequest(ValueError):
    """A request that cannot be read: a slip in the code that made it."""


def checked(
    context: Context, requests: Sequence[Request], layers: Sequence[int], answers: Sequence[int]
) -> tuple[list[Request], list[int], list[int]]:
    """Return what is to be read, with ids as arrays and what counts from the end counted from the start.

    Args:
        context: of the model.
        requests: to be read.
        layers: blocks; negative ones count from the last.
        answers: token ids.

    Raises:
        BadRequest: anything else than its field says; the first request that is wrong is named by its number.
        UserError: a request and its reply do not fit the model's context.
    """
    blocks = checked_layers(context, layers)
    tokens = [_integer(answer, "an answer") for answer in answers]
    wrong = [token for token in tokens if not 0 <= token < context.outputs]
    if wrong:
        raise BadRequest(f"answers: token id {wrong[0]}: give ids from 0 to {context.outputs - 1}")
    found = []
    for number, request in enumerate(requests):
        try:
            found.append(_checked(context, request))
        except BadRequest as error:
            raise BadRequest(f"request {number}: {error}") from None
    check_context(context, [(len(r.ids), r.reply) for r in found])
    return found, blocks, tokens


def checked_layers(context: Context, layers: Sequence[int]) -> list[int]:
    """Return block numbers from 0; they must be there and differ."""
    count, found = len(context.blocks), []
    for layer in layers:
        given = _integer(layer, "a layer")
        if not -count <= given < count:
            raise BadRequest(
                f"layer {given}: the model has layers 0..{count - 1}, or -{count}..-1 from the end"
            )
        if given % count in found:
            raise BadRequest(f"layers {list(layers)}: layer {given % count} is there twice")
        found.append(given % count)
    return found


def checked_ids(context: Context, ids: Any, what: str) -> Int64[np.ndarray, " T"]:
    """Return token ids as an array."""
    array = np.asarray(ids)
    if array.ndim != 1 or not len(array):
        raise BadRequest(f"{what} of shape {array.shape}: give one sequence of at least one token")
    if array.dtype.kind not in "iu":
        raise BadRequest(f"{what} of type {array.dtype}: give integers")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= context.vocabulary:
        wrong = low if low < 0 else high
        raise BadRequest(f"{what} with token id {wrong}: give ids from 0 to {context.vocabulary - 1}")
    return array.astype(np.int64, copy=False)


def check_sampling(sampling: Sampling) -> None:
    """Raise BadRequest unless a reply can be drawn so."""
    if _integer(sampling.max_new_tokens, "max_new_tokens") < 1:
        raise BadRequest(f"a reply of at most {sampling.max_new_tokens} tokens: give 1 or more")
    heat = sampling.temperature
    if not isinstance(heat, numbers.Real) or not np.isfinite(heat) or heat < 0:
        raise BadRequest(f"temperature {heat!r}: give 0 (greedy) or a finite number above it")
    if any(_integer(part, "a part of the seed") < 0 for part in sampling.seed):
        raise BadRequest(f"seed {sampling.seed}: give integers from 0")
    if not callable(sampling.rule):
        raise BadRequest(f"rule {sampling.rule!r}: give a function, see Rule in analysis/engine/replies.py")


def check_context(context: Context, lengths: Sequence[tuple[int, Sampling | None]]) -> None:
    """Raise UserError if a prompt of so many tokens and its reply are longer than the model's context."""
    limit = context.positions
    longest = max((n + (reply.max_new_tokens if reply else 0) for n, reply in lengths), default=0)
    if limit is not None and longest > limit:
        raise UserError(
            f"the longest prompt needs {longest} tokens, but the model's context has {limit}: use fewer "
            "examples (--n_train), shorter sentences, or a model with a longer context"
        )


# ---------------------------------------------------------------- what may be anything


def _checked(context: Context, request: Request) -> Request:
    ids = checked_ids(context, request.ids, "ids")
    spans = [_span(span, len(ids)) for span in request.spans]
    places = [_place(place, len(ids)) for place in request.logits_at]
    if request.reply is not None:
        check_sampling(request.reply)
    for steering in request.steering:
        _check_steering(context, steering, len(ids))
    return replace(request, ids=ids, spans=spans, logits_at=places)


def _span(span: Any, length: int) -> tuple[int, int]:
    try:
        start, stop = span
    except (TypeError, ValueError):
        raise BadRequest(f"span {span!r}: give pairs (start, stop)") from None
    first, last = _integer(start, "the start of a span"), _integer(stop, "the stop of a span")
    if not 0 <= first < last <= length:
        raise BadRequest(
            f"span ({first}, {last}) of {length} tokens: give 0 <= start < stop <= {length}, no empty one"
        )
    return first, last


def _place(place: Any, length: int) -> int:
    given = _integer(place, "a position of logits_at")
    if not -length <= given < length:
        raise BadRequest(
            f"logits at position {given} of {length} tokens: give 0..{length - 1}, or from the end "
            f"-{length}..-1"
        )
    return given % length


def _check_steering(context: Context, one: Steering, length: int) -> None:
    n_layers, width = len(context.blocks), context.width
    for value in (*one.layers, one.start, *([] if one.stop is None else [one.stop])):
        _integer(value, "a layer, start or stop of steering")
    if min(one.layers) < 0 or max(one.layers) >= n_layers or one.directions.shape[1] != width:
        raise BadRequest(
            f"steering of layers {one.layers} with hidden size {one.directions.shape[1]}, but the model has "
            f"layers 0..{n_layers - 1} and hidden size {width}: use axes of this model"
        )
    if max(one.start, one.stop or 0) > length:
        raise BadRequest(
            f"steering from token {one.start} to {one.stop}, but the request has {length} tokens: "
            "end it there, or give no stop to go on in the reply"
        )


def _integer(value: Any, what: str) -> int:
    """Return a whole number as int; True and False are none."""
    try:
        if not isinstance(value, (bool, np.bool_)):
            return operator.index(value)
    except TypeError:
        pass
    raise BadRequest(f"{what} is {value!r}: give an integer")
