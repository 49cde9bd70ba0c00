"""Keys that come more than once in a source."""

from __future__ import annotations

from mmdata.steps.exchange import Input


class Repeats:
    """Tells inputs of one key apart, `key#2` and so on, also from those whose key is written like that.

    Keys come in order: one comes before those that it begins.
    """

    def __init__(self, what: str, fix: str = "") -> None:
        """`what` an input is called in the message, and what its end says."""
        self._what = what
        self._fix = fix
        self._seen: str | None = None
        self._times: dict[str, int] = {}

    def told_apart(self, found: Input) -> Input:
        """The first of a key as it is, each other as a failed input of its own, by its own problem if it has one."""
        if found.key != self._seen and not self._is_made_up(found.key):
            self._seen = found.key
            return found
        times = self._times[found.key] = self._times.get(found.key, 1) + 1
        repeated = ("duplicate_key", f"{self._what} {times} with the key '{found.key}'{self._fix}")
        return Input(f"{found.key}#{times}", (), found.attributes, found.problem or repeated)

    def _is_made_up(self, key: str) -> bool:
        repeated, _, number = key.rpartition("#")
        return number.isdecimal() and repeated in self._times and int(number) <= self._times[repeated]
