"""Find a CLIP model's weights and name them by content, without importing numpy, torch or open_clip: serves a plan."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from pathlib import Path

from mmdata.errors import WeightsError
from mmdata.models.weights import Weights, cache_dir, content_identity

CONFIG_NAME = "open_clip_config.json"
# The names that open_clip itself looks for first (`_find_checkpoint_in_dir`), in its order.
CHECKPOINT_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
# Whatever of these lies in a model folder changes how it reads texts, so it is part of the model's identity.
_TEXT_NAMES = (
    "config.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_CHECKPOINT_SUFFIXES = {".bin", ".pt", ".pth", ".safetensors"}


def locate(model: str, pretrained: str | None = None) -> Weights:
    """Say which weights `model` names and whether they are here, in milliseconds.

    Args:
        model: a folder with `open_clip_config.json` and a checkpoint, `hf-hub:organisation/name`, or the name of an
            open_clip architecture.
        pretrained: for an architecture: a tag that open_clip knows, or a checkpoint file. Folders and hub ids bring
            their own weights and ignore it.

    Raises:
        WeightsError: something is missing; the message says what, and how to get it.
    """
    if model.startswith("hf-hub:"):
        return Weights(identity=model)
    folder = as_folder(model)
    if folder is not None:
        return _locate_folder(folder)
    _check_architecture(model)
    if pretrained is None:
        raise WeightsError(
            f"model {model!r} has no weights: random ones would score noise; "
            "give 'pretrained' a tag such as 'openai' or the path of a checkpoint, or 'model' an existing folder"
        )
    if not is_path(pretrained):
        _check_tag(model, pretrained)
        return Weights(identity=f"{model}/{pretrained}")
    checkpoint = Path(pretrained).expanduser()
    if not checkpoint.is_file():
        raise WeightsError(f"checkpoint {pretrained} for model {model!r} is not there")
    return Weights(identity=f"{model}/{content_identity([checkpoint])}", path=checkpoint)


def as_folder(model: str) -> Path | None:
    """The folder that `model` names, None where it names an architecture or a hub id."""
    if model.startswith("local-dir:"):
        return Path(model.removeprefix("local-dir:")).expanduser()
    folder = Path(model).expanduser()
    return folder if is_path(model) or folder.is_dir() else None


def is_path(text: str) -> bool:
    """Whether `pretrained` or `model` names a file or folder rather than a tag."""
    path = Path(text).expanduser()
    return text.startswith(("~", ".")) or path.is_absolute() or path.is_file() or path.suffix in _CHECKPOINT_SUFFIXES


def _locate_folder(folder: Path) -> Weights:
    checkpoints = [folder / name for name in CHECKPOINT_NAMES if (folder / name).is_file()]
    if not (folder / CONFIG_NAME).is_file():
        raise WeightsError(_missing(folder, CONFIG_NAME))
    if not checkpoints:
        raise WeightsError(_missing(folder, " or ".join(CHECKPOINT_NAMES)))
    texts = [folder / name for name in _TEXT_NAMES if (folder / name).is_file()]
    return Weights(identity=content_identity([folder / CONFIG_NAME, checkpoints[0], *texts]), path=folder)


def _missing(folder: Path, what: str) -> str:
    # The one that `fetch` makes.
    ours = folder == cache_dir() / "models" / "lite"
    fix = f"{'' if ours else 'give the folder of an open_clip model, or '}run: mmdata fetch lite"
    state = f"has no {what}" if folder.is_dir() else "is not there"
    return f"model folder {folder} {state}; {fix}"


def _check_architecture(model: str) -> None:
    """Check a name against the configs that open_clip ships, without importing it (that takes seconds)."""
    package = _open_clip_folder()
    known = {path.stem for path in (package / "model_configs").glob("*.json")} if package else set()
    if not known or model.replace("/", "-") in known:
        return
    near = difflib.get_close_matches(model, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "python -c 'import open_clip; print(open_clip.list_models())'"
    raise WeightsError(f"model {model!r} is neither a folder nor an architecture that open_clip knows; {hint}")


def _check_tag(model: str, tag: str) -> None:
    """Check a tag against those that open_clip lists for an architecture, in the spelling it allows (`_clean_tag`)."""
    architecture = model.replace("/", "-")
    tags = _listed_tags()
    known = tags.get(architecture) or tags.get(architecture.removesuffix("-quickgelu"), [])
    if not tags or tag.lower().replace("-", "_") in known:
        return
    near = difflib.get_close_matches(tag, known, n=1, cutoff=0.5)
    listed = f"it has {', '.join(known)}" if known else "it has none, give the path of a checkpoint"
    hint = f"did you mean {near[0]!r}?" if near else listed
    raise WeightsError(f"pretrained {tag!r} is no tag that open_clip has weights of {model!r} for; {hint}")


def _listed_tags() -> dict[str, list[str]]:
    """Tags by architecture, read from open_clip's source, which takes seconds to import; empty if written otherwise."""
    package = _open_clip_folder()
    source = package / "pretrained.py" if package else None
    if source is None or not source.is_file():
        return {}
    tags: dict[str, list[str]] = {}
    for statement in ast.parse(source.read_text(encoding="utf-8")).body:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
            continue
        name, value = statement.targets[0].id, statement.value
        if isinstance(value, ast.Call):
            tags[name] = _keywords(value)
        elif name == "_PRETRAINED" and isinstance(value, ast.Dict):
            return {
                key.value: _keywords(of) if isinstance(of, ast.Call) else tags.get(getattr(of, "id", ""), [])
                for key, of in zip(value.keys, value.values, strict=True)
                if isinstance(key, ast.Constant) and isinstance(key.value, str)
            }
    return {}


def _keywords(call: ast.Call) -> list[str]:
    return [keyword.arg for keyword in call.keywords if keyword.arg]


def _open_clip_folder() -> Path | None:
    found = importlib.util.find_spec("open_clip")
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None
