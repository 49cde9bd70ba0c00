"""`mmdata train`: from a training file to a model, its log and its metrics. Imports torch only when it starts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdata.document import Override
from mmdata.errors import SpecError
from mmdata.extras import require
from mmdata.train.config import TrainConfig, load_config, load_document
from mmdata.train.known import unknown_members, unknown_vectors
from mmdata.train.manifest import open_folder

if TYPE_CHECKING:
    from mmdata.document import Document
    from mmdata.train.session import Session

__all__ = ["load_config", "train"]


def train(
    config_path: Path,
    overrides: Sequence[str] = (),
    output: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Train, or go on where the last run of the same command stopped, and measure.

    Args:
        config_path: a training file.
        overrides: `a.b=c` each, laid over it.
        output: folder of the result, instead of the file's.
        say: takes a line of progress; prints where nothing is given.

    Returns:
        `status` (`finished`, `stopped` by a signal, or `already_finished`), `output`, `step`, `steps`, `seconds` of
        training, counts of `samples`, and, unless stopped, `metrics` by direction.

    Raises SpecError for the file, TrainError for the shards or the training, MissingExtraError without torch.
    """
    own = [Override(f"output={json.dumps(str(output))}", f"--output {output}")] if output else []
    given = [*overrides, *own]
    config, document = load_document(config_path, given)
    _check_members(config, document)
    require("mmdata train", "train")
    from mmdata.train.data import open_sets
    from mmdata.train.growth import all_sets
    from mmdata.train.launch import alone_in, process_group, rank_device
    from mmdata.train.log import say_line
    from mmdata.train.session import Session

    with process_group(rank_device(config.device)), alone_in(Path(config.output)):
        return _carry_out(Session(config, open_sets(config, all_sets(config)), say_line if say is None else say))


def _check_members(config: TrainConfig, document: Document) -> None:
    known: dict[str, str] = {}
    vectors: set[str] = set()
    for one in config.data.all_sets().values():
        manifest = open_folder(one.shards).manifest
        known |= {name: member.modality for name, member in manifest.members.items()}
        vectors |= manifest.embeddings.keys()
    if lines := [*unknown_members(config, document, known), *unknown_vectors(config, document, vectors)]:
        raise SpecError(lines)


def _carry_out(session: Session) -> dict[str, Any]:
    done = session.finished_before()
    if done is not None:
        return done
    session.prepare()
    if not session.train():
        return session.summary("stopped")
    session.finish()
    return session.summary("finished")


def schema() -> dict[str, Any]:
    """JSON Schema of a training file, for editors."""
    return TrainConfig.model_json_schema()
