"""Loudness by FFmpeg's `ebur128`: ITU-R BS.1770-4 and EBU R 128, in one pass."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

# EBU R 128: the absolute gate. FFmpeg gives it where nothing was louder, and where there was no block of 0.4 s.
_GATE_LUFS: Final = -70.0
_KEY: Final = "lavfi.r128.I"


class Loudness:
    """Takes decoded frames, and gives their integrated loudness."""

    def __init__(self, rate_hz: int, layout: str) -> None:
        """For frames of float samples (`flt`) of that rate and layout of channels."""
        import av.filter

        self._graph = av.filter.Graph()
        steps = [
            self._graph.add_abuffer(format="flt", sample_rate=rate_hz, layout=layout),
            self._graph.add("ebur128", "metadata=1:peak=none"),
            self._graph.add("abuffersink"),
        ]
        self._graph.link_nodes(*steps).configure()
        self._lufs = math.nan

    def add(self, frame: Any) -> None:
        """The next frame."""
        self._graph.push(frame)
        self._drain()

    def integrated_lufs(self) -> float | None:
        """Of all that was added; None for silence, and for less than 0.4 s."""
        self._graph.push(None)
        self._drain()
        return self._lufs if self._lufs > _GATE_LUFS else None

    def _drain(self) -> None:
        for frame in self._measured():
            # Each frame carries the loudness of all until its end; those of an unfinished block carry none.
            self._lufs = float(frame.metadata.get(_KEY, self._lufs))

    def _measured(self) -> Iterator[Any]:
        import av

        while True:
            try:
                yield self._graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return
