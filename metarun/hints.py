"""What to say to someone who mistyped a name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

NEAR = 0.6
"""Likeness, 0 to 1, from which on a name may be the one that was meant."""
FEW = 24
"""Options that can all be named where there is room for little."""


def _likeness(word: str, option: str) -> float:
    if word == option:
        return 0.0  # whoever typed just this did not mean this
    (node, key), (own_node, own_key) = (name.lower().rpartition(".")[::2] for name in (word, option))
    last = _ratio(key, own_key)
    # `inner_lr` and `train.inner_lr` may mean `algo.inner_lr`; `model.filters` on no account `model.widths`.
    return max(min(_ratio(node, own_node), last), 0.9 * last if last >= 0.8 and own_node else 0.0)


def _ratio(a: str, b: str) -> float:
    return SequenceMatcher(None, a, b).ratio()


def nearest(word: str, options: Iterable[str]) -> list[str]:
    """The options most like `word`, at most three, best first; none when none is near."""
    ranked = sorted(((_likeness(word, o), o) for o in set(options)), key=lambda pair: (-pair[0], pair[1]))
    # A second best is only worth reading if it is about as good as the best.
    return [o for likeness, o in ranked[:3] if likeness >= max(NEAR, ranked[0][0] - 0.1)]


def did_you_mean(word: str, options: Iterable[str], told_by: str = "--help") -> str:
    """A hint to end an error with: the nearest options, or all of them when none is near and they are few."""
    options = sorted(set(options))
    if near := nearest(word, options):
        return f"did you mean {' or '.join(near)}?"
    return f"choose from: {', '.join(options)}" if 0 < len(options) <= FEW else f"see {told_by} for what there is"
