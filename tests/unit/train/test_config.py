from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from mmdata.cli import cli
from mmdata.errors import SpecError
from mmdata.train.config import TrainConfig, load_config
from mmdata.train.evaluate.config import load_settings

GOOD = """\
data:
  shards: somewhere
  modalities: {text: [caption], image: [image]}
steps: 50
output: run
"""


def problems(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_config(path, overrides)
    return [problem.removeprefix(f"{tmp_path}/") for problem in caught.value.problems]


def test_defaults_and_overrides(tmp_path: Path):
    path = tmp_path / "train.yaml"
    path.write_text(GOOD)
    config = load_config(path, ["optim.lr=0.5", "model.text.depth=7", "data.modalities.text=[a, b]"])
    assert config.optim.lr == 0.5
    assert config.data.modalities == {"text": ["a", "b"], "image": ["image"]}
    assert config.architecture().text.model_dump() == {"width": 96, "depth": 7, "heads": 4}
    assert config.architecture().image.depth == 2


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("shards:", "shard:", "train.yaml:2:3 data.shard: unknown key 'shard'; did you mean 'shards'?"),
        ("image: [image]", "imge: [image]", "train.yaml:3:33 data.modalities.imge: unknown modality 'imge'; did you"),
        ("image: [image]", "image: []", "train.yaml:3:33 data.modalities.image: names no member"),
        ("image: [image]", "image: [caption]", "train.yaml:3:41 data.modalities.image[0]: the member 'caption' is na"),
        ("steps: 50", "steps: 50\neval_ks: [5, 0]", "train.yaml:5:1 eval_ks: k counts from 1"),
        (
            "steps: 50",
            "steps: 50\nloss: {pair: 0, fusion: 0}",
            "train.yaml:5:1 loss: every term weighs 0, so nothing is learnt; give one a weight, `pair: 1`",
        ),
        (
            "steps: 50",
            "stages: [{name: a, samples: 9, loss: {distill: 1}}]",
            "train.yaml:4:39 stages[0].loss.distill: learns from a teacher, and none is named; add `teachers:",
        ),
        (
            "shards: somewhere",
            "shards: somewhere\n  val_split: train",
            "train.yaml:3:3 data.val_split: 'train' is what is trained on, and what is measured on it says nothing",
        ),
        ("shards: somewhere", "shards: s\n  train_split: val", "train.yaml:3:3 data.train_split: 'val' is what is"),
        ("steps: 50", "steps: 5", "train.yaml:1:1 optim.warmup: 20 steps of warm-up leave none of 5"),
        (
            "steps: 50",
            "model: {size: tny}",
            "train.yaml:4:9 model.size: input should be 'tiny', 'small' or 'base', not",
        ),
        (
            "steps: 50",
            "",
            "train.yaml:1:1 steps: a training runs for steps, for epochs or in stages, and none is given",
        ),
        (
            "steps: 50",
            "steps: 50\nepochs: 2",
            "train.yaml:4:1 steps: a training runs for steps, for epochs or in stages, and steps and epochs",
        ),
        (
            "steps: 50",
            "steps: 50\nmodel: {text: {heads: 5}}",
            "train.yaml:5:9 model.text: a width of 96 does not divid",
        ),
        ("steps: 50", "steps: 50\nmodel: {patch_px: 7}", "train.yaml:1:1 data.image_side_px: 64 px do not divide into"),
        ("output: run", "", "train.yaml:1:1 the key 'output' is missing"),
        ("steps: 50", "steps: 50\nloss: {caption: 1}", "train.yaml:5:8 loss.caption: needs a decoder that writes; add"),
        ("steps: 50", "steps: 50\nloss: {flow: 1}", "train.yaml:5:8 loss.flow: needs a decoder that draws or sounds"),
        ("steps: 50", "steps: 50\nloss: {route: 1}", "train.yaml:5:8 loss.route: chooses between decoders"),
        ("steps: 50", "steps: 50\nloss: {answer: 1}", "train.yaml:5:8 loss.answer: learns from questions; add"),
        ("steps: 50", "steps: 50\nmodel: {decoders: [audio]}", "train.yaml:5:20 model.decoders[0]: 'audio' is not und"),
        ("steps: 50", "steps: 50\nmodel: {shared_trunk: true, text: {width: 64}}", "train.yaml:5:29 model.text: a wid"),
        (
            "image: [image]}",
            "image: [image]}\n  answers: {question: caption, answer: b}",
            "train.yaml:4:13 data.answers",
        ),
    ],
)
def test_a_fault_names_place_value_and_fix(tmp_path: Path, old, new, expected):
    found = problems(tmp_path, GOOD.replace(old, new))
    assert [line for line in found if line.startswith(expected)], found


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`output: ~/runs/a` made a folder that is called `~`."""
    monkeypatch.setenv("HOME", "/home/me")
    path = tmp_path / "train.yaml"
    path.write_text(GOOD)
    config = load_config(path, ["output=~/runs/a", "data.shards=~/shards", "start.run=~/old", "teacher.run=~/big"])
    assert config.start is not None
    assert config.teacher is not None
    paths = (config.output, config.data.shards, config.start.run, config.teacher.run)
    assert paths == ("/home/me/runs/a", "/home/me/shards", "/home/me/old", "/home/me/big")
    assert load_settings(None, ["shards=~/held-out"]).shards == "/home/me/held-out"


def test_an_override_is_named_as_typed(tmp_path: Path):
    assert problems(tmp_path, GOOD, "optim.lr=-1")[0].startswith("--set optim.lr=-1: input should be greater than 0")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--replay", "0.2"], "--replay 0.2: names no run to begin with; add --continue RUN, or `run: RUN` under"),
        (["--add-modality", "audio"], "--add-modality audio: names no run to begin with; add --continue RUN, or"),
        (["--continue", "old", "--replay", "1"], "--replay 1.0: input should be less than 1, not 1.0"),
    ],
)
def test_an_option_is_named_as_typed(tmp_path: Path, options: list[str], said: str):
    """It was spoken of as `--set start.replay=0.2`, which nobody had typed."""
    (tmp_path / "train.yaml").write_text(GOOD)
    with pytest.raises(SpecError) as caught:
        CliRunner().invoke(cli, ["train", str(tmp_path / "train.yaml"), *options], catch_exceptions=False)
    assert str(caught.value).startswith(said)


def test_every_fault_is_reported_at_once(tmp_path: Path):
    assert len(problems(tmp_path, GOOD.replace("shards:", "shard:").replace("steps: 50", "steps: x"))) == 2


def test_every_field_is_described():
    schema = TrainConfig.model_json_schema()
    fields = [
        (name, field) for model in [schema, *schema["$defs"].values()] for name, field in model["properties"].items()
    ]
    assert len(fields) > 40
    assert [name for name, field in fields if not field.get("description")] == []


def test_reading_a_config_loads_nothing_heavy(tmp_path: Path):
    path = tmp_path / "train.yaml"
    path.write_text(GOOD)
    code = (
        "import sys, pathlib\nfrom mmdata.train.run import load_config\n"
        f"load_config(pathlib.Path({str(path)!r}), [])\n"
        "print(sorted({'torch', 'tokenizers', 'av', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
