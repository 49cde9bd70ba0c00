"""The tree of exceptions.

Everything that mmdata raises on purpose is an `MmdataError`, in one of three kinds that say what happens next:

* `SpecError`, `PlanError`, `WeightsError`: the build does not start (exit code 2).
* `SampleError`: one sample is out, with its reason in the ledger; the build goes on.
* `FatalError`: the build stops; what is finished stays finished (exit code 1).

Any other exception that leaves a step is a programming error and is fatal.
"""

from __future__ import annotations

from typing import Any


class MmdataError(Exception):
    """Base of all errors that mmdata raises on purpose; the message is for the user as it stands."""

    def __reduce__(self) -> tuple[Any, ...]:
        """As it is. Python would call the class with the message; a worker whose error cannot be read back is dead."""
        return _as_it_was, (type(self), self.args, self.__dict__)


def _as_it_was(kind: type[MmdataError], args: tuple[Any, ...], attributes: dict[str, Any]) -> MmdataError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class SpecError(MmdataError):
    """The YAML file is wrong: `problems` has a line for each fault, `file:line:column path: what; fix`."""

    def __init__(self, problems: list[str]) -> None:
        """Keep every problem, so that one run shows them all."""
        self.problems = problems
        super().__init__("\n".join(problems))


class PlanError(SpecError):
    """The YAML file reads well, but what it asks for cannot be run here."""


class WeightsError(MmdataError):
    """Model weights are missing or are not what they should be; the message says how to get them."""


class MissingExtraError(MmdataError):
    """An optional dependency is not installed; the message has the `pip install` line."""

    def __init__(self, needed_by: str, package: str, extra: str) -> None:
        """Name what needs which package, and the extra that brings it."""
        super().__init__(f"{needed_by} needs {package}: pip install 'mmdata[{extra}]'")


class SampleError(MmdataError):
    """One sample cannot be used. `reason` is a short constant slug to count by, the message says it in full."""

    def __init__(self, reason: str, message: str) -> None:
        """Keep the slug apart from the sentence."""
        self.reason = reason
        super().__init__(message)


class FatalError(MmdataError):
    """The build cannot go on."""


class LedgerError(FatalError):
    """The fates do not add up to the inputs: a defect of mmdata, never of the data."""


class TrainError(MmdataError):
    """Training cannot start or go on: configuration, shards or a checkpoint."""
