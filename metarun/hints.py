"""What to say to someone who mistyped a name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """A hint to end an error with: the nearest options, or all of them when none is near and they are few."""
    options = sorted(set(options))
    # Someone who types `inner_lr` may mean `algo.inner_lr`: its last part counts too.
    near = get_close_matches(word, options, 3, 0.6)
    near += [
        o for o in options if o not in near and "." in o and get_close_matches(word, [o.rsplit(".", 1)[1]], 1, 0.8)
    ]
    if near:
        return f"did you mean {' or '.join(near[:3])}?"
    return f"choose from: {', '.join(options)}" if 0 < len(options) <= 24 else "see --help for what there is"
