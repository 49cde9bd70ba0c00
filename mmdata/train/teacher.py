"""Live teachers: models that embed each batch for the one that is trained, without learning themselves.

Shapes: B samples, M modalities, N samples that have a modality, E the teacher's embedding dimensions.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mmdata.errors import TrainError
from mmdata.models.clip import Clip
from mmdata.train.batch import Batch, Lesson, Space
from mmdata.train.config import TeacherConfig, TrainConfig
from mmdata.train.export import load_model, run_limits
from mmdata.train.model.fused import FusedModel


class Teacher(Protocol):
    """Adds its embeddings to a batch."""

    @property
    def lessons(self) -> tuple[Lesson, ...]:
        """What it teaches."""
        ...

    def teach(self, batch: Batch) -> Batch:
        """The batch, with `taught` filled: (B, E) a lesson, zeros where a sample lacks the modality."""
        ...


class RunTeacher:
    """The model of a finished run, which reads the same inputs as the student."""

    def __init__(self, model: FusedModel, modalities: tuple[str, ...]) -> None:
        """`modalities` are the student's, in the order of its batches."""
        self._model = model
        self._columns = [modalities.index(name) for name in model.modalities]

    @property
    def lessons(self) -> tuple[Lesson, ...]:
        """One of each of its modalities, all in one space."""
        return tuple(Lesson(name, Space("", self._model.embed_dim)) for name in self._model.modalities)

    @torch.no_grad()
    def teach(self, batch: Batch) -> Batch:
        """With the teacher's own embeddings of its modalities."""
        inputs = {name: part for name, part in batch.inputs.items() if name in self._model.modalities}
        seen = dataclasses.replace(batch, inputs=inputs, present_BM=batch.present_BM[:, self._columns])
        embeddings = self._model.encode(seen).embeddings
        return dataclasses.replace(batch, taught=dict(zip(self.lessons, embeddings, strict=True)))


class ClipTeacher:
    """An open_clip model, which sees the batch's images in its own size, and its texts."""

    def __init__(self, clip: Clip, device: torch.device) -> None:
        """`clip` is loaded on the same device."""
        self._clip, self._device = clip, device

    @property
    def lessons(self) -> tuple[Lesson, ...]:
        """Of images and texts, in one space."""
        return tuple(Lesson(name, Space("", self._clip.width)) for name in ("image", "text"))

    def teach(self, batch: Batch) -> Batch:
        """With the embeddings of images and texts."""
        teacher = {}
        if "image" in batch.inputs:
            images = batch.inputs["image"]
            teacher["image"] = self._spread(self._images(images.values), images.row_N.tolist(), len(batch))
        rows = [row for row, text in enumerate(batch.texts) if text is not None]
        if rows:
            texts = [text for text in batch.texts if text is not None]
            teacher["text"] = self._spread(self._clip.embed_texts(texts), rows, len(batch))
        return dataclasses.replace(batch, taught=self._filled(teacher, len(batch)))

    def _images(self, pixels_N3HW: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        side = self._clip.recipe.side_px
        scaled = functional.interpolate(pixels_N3HW.float(), (side, side), mode="bicubic", antialias=True)
        return self._clip.embed_images(scaled.round().clamp(0, 255).to(torch.uint8).cpu().numpy())

    def _spread(
        self, vector_NE: np.ndarray[tuple[int, ...], np.dtype[np.float32]], rows: list[int], size: int
    ) -> Tensor:
        vector_BE = torch.zeros((size, self._clip.width))
        vector_BE[rows] = torch.from_numpy(vector_NE)
        return vector_BE.to(self._device)

    def _filled(self, teacher: dict[str, Tensor], size: int) -> dict[Lesson, Tensor]:
        """Every rank has the same lessons, also where none of its samples has the modality."""
        none = torch.zeros((size, self._clip.width), device=self._device)
        return {lesson: teacher.get(lesson.modality, none) for lesson in self.lessons}


def load_teacher(config: TrainConfig, device: torch.device) -> Teacher | None:
    """The teacher that the file names, None where it names none.

    Raises TrainError where a run's inputs are other than the student's, and what loading raises.
    """
    about = config.teacher
    if about is None:
        return None
    if about.open_clip is not None:
        return ClipTeacher(Clip.load(about.open_clip, about.pretrained, str(device)), device)
    return _run_teacher(about, config, device)


def _run_teacher(about: TeacherConfig, config: TrainConfig, device: torch.device) -> RunTeacher:
    folder = Path(about.run or "")
    run_limits(folder, config, "teacher.run")
    model, _ = load_model(folder, device)
    modalities = tuple(config.data.modalities)
    if more := [name for name in model.modalities if name not in modalities]:
        raise TrainError(f"{folder}: the teacher has modalities that the student lacks: {', '.join(more)}")
    return RunTeacher(model.requires_grad_(requires_grad=False), modalities)
