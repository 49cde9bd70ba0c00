"""A part that is a tar of payloads beside a Parquet of rows: written aside, committed whole or not at all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from mmdata.store.files import appearing
from mmdata.store.tar import TarWriter


class PartWriter(ABC):
    """Writes one part; commits when the block ends well, and leaves nothing when it does not."""

    def __init__(self, parquet: Path) -> None:
        """The part is `parquet` and the tar beside it."""
        self._parquet = parquet

    def __enter__(self) -> Self:
        """Open the scratch tar."""
        self._appearing = appearing(self._parquet.with_suffix(".tar"))
        self._file = self._appearing.__enter__().open("wb")
        self._tar = TarWriter(self._file)
        return self

    def __exit__(self, *error: object) -> None:
        """Commit: the tar first, then the Parquet, whose presence says that the part is there."""
        if error[0] is None:
            self._tar.finish()
        self._file.close()
        self._appearing.__exit__(*error)  # type: ignore[arg-type]
        if error[0] is None:
            self._commit()

    @abstractmethod
    def _commit(self) -> None:
        """Write `self._parquet`."""
