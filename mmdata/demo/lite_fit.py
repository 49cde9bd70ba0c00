"""Fit the two projection heads of `lite` on features of frozen towers.

Shapes: N drawings, K concepts, M texts, B pairs of a batch, F image features (1280), E text features (384),
D embedding size, C classes of the classifier (1000).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import nn

    Floats = NDArray[np.float32]

# Added to the standard deviation of each image feature, so that a hardly used one is not blown up.
_STD_FLOOR = 0.05


@dataclass(frozen=True)
class FitConfig:
    """Settings, chosen on held-out clip-art and emoji alone.

    Attributes:
        embed_dim: D.
        seed: of initialisation, batches and noise.
        steps: of the optimiser.
        batch_size: B.
        learning_rate: peak of a one-cycle schedule, for AdamW.
        weight_decay: of AdamW.
        concept_share: of a batch.
        concept_noise: mean share of a random drawing that is added to a concept, as what sets its images apart.
        image_noise: highest share of a random other drawing that is added to a drawing.
        text_noise: standard deviation of the noise on text features, as a share of theirs.
        dropout: of the image head's hidden layer.
        same_text_cosine: pairs whose texts are closer than this are not held against each other.
        temperature: at the start; it is learned (Radford et al. 2021, section 2.3).
    """

    embed_dim: int = 256
    seed: int = 0
    steps: int = 300
    batch_size: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    concept_share: float = 0.35
    concept_noise: float = 1.0
    image_noise: float = 0.4
    text_noise: float = 0.4
    dropout: float = 0.6
    same_text_cosine: float = 0.8
    temperature: float = 0.07


@dataclass(frozen=True)
class Pairs:
    """What to fit on.

    Attributes:
        image_NF: features of the drawings.
        concept_KC: the share of each class in each concept; rows sum to 1.
        classifier_CF: weights of the frozen classifier.
        text_ME: features of the distinct texts.
        texts_of: for each drawing, then each concept, the rows of its texts in `text_ME`.
    """

    image_NF: Floats
    concept_KC: Floats
    classifier_CF: Floats
    text_ME: Floats
    texts_of: list[list[int]]


def fit_heads(pairs: Pairs, config: FitConfig) -> dict[str, torch.Tensor]:
    """Fit both heads with the CLIP loss (Radford et al. 2021) plus the sigmoid loss (Zhai et al. 2023, SigLIP).

    The first ranks within a batch; the second puts all cosines on one scale, which a threshold needs.

    Returns:
        Their parameters and `logit_scale`, under the names they have in open_clip's `CustomTextCLIP`.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return _Fit(pairs, config).run()


class _Fit:
    def __init__(self, pairs: Pairs, config: FitConfig) -> None:
        import torch

        self._config = config
        self._rng = np.random.default_rng(config.seed)
        self._mean_F = pairs.image_NF.mean(axis=0)
        self._std_F = pairs.image_NF.std(axis=0) + np.float32(_STD_FLOOR)
        unit_NF = (pairs.image_NF - self._mean_F) / self._std_F
        self._image_NF = torch.from_numpy(unit_NF)
        self._concept_KF = torch.from_numpy(_prototypes(unit_NF, pairs.classifier_CF * self._std_F, pairs.concept_KC))
        self._text_ME = torch.from_numpy(pairs.text_ME)
        centred_ME = self._text_ME - self._text_ME.mean(dim=0)
        self._direction_ME = torch.nn.functional.normalize(centred_ME, dim=-1)
        self._texts_of = [np.array(rows) for rows in pairs.texts_of]
        self._image_head = _image_head(pairs.image_NF.shape[1], config)
        self._text_head = _text_head(pairs.text_ME.shape[1], config.embed_dim)
        self._log_scale = torch.nn.Parameter(torch.tensor(-np.log(config.temperature), dtype=torch.float32))
        # Of B * B pairs few match: SigLIP starts from that prior (section 3.2).
        self._bias = torch.nn.Parameter(torch.tensor(-np.log(config.batch_size), dtype=torch.float32))

    def run(self) -> dict[str, torch.Tensor]:
        import torch

        config = self._config
        heads = [*self._image_head.parameters(), *self._text_head.parameters()]
        groups = [
            {"params": heads, "weight_decay": config.weight_decay},
            {"params": [self._log_scale, self._bias], "weight_decay": 0.0},
        ]
        optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate, config.steps, pct_start=0.1)
        for _ in range(config.steps):
            optimiser.zero_grad()
            self._loss().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        return self._state()

    def _loss(self) -> torch.Tensor:
        from torch.nn import functional

        image_BF, rows_B = self._batch()
        image_BD = functional.normalize(self._image_head(image_BF), dim=-1)
        text_BD = functional.normalize(self._text_head(self._noisy_texts(rows_B)), dim=-1)
        direction_BE = self._direction_ME[rows_B]
        same_BB = direction_BE @ direction_BE.T > self._config.same_text_cosine
        logits_BB = image_BD @ text_BD.T * self._log_scale.exp()
        return _clip_loss(logits_BB, same_BB) + _sigmoid_loss(logits_BB + self._bias, same_BB)

    def _batch(self) -> tuple[torch.Tensor, NDArray[np.int64]]:
        """Image features of B pairs and the rows of their texts, one of each pair's at random."""
        import torch

        concepts = round(self._config.batch_size * self._config.concept_share)
        drawings = self._config.batch_size - concepts
        chosen_N = _draw(self._rng, len(self._image_NF), drawings)
        chosen_K = _draw(self._rng, len(self._concept_KF), concepts)
        drawing_BF = self._image_NF[chosen_N] + self._spread(len(chosen_N), self._config.image_noise)
        concept_BF = self._concept_KF[chosen_K] + self._spread(len(chosen_K), 2 * self._config.concept_noise)
        owners = [*chosen_N, *(len(self._image_NF) + chosen_K)]
        rows = [int(self._rng.choice(self._texts_of[owner])) for owner in owners]
        return torch.cat([drawing_BF, concept_BF]), np.array(rows)

    def _spread(self, count: int, most: float) -> torch.Tensor:
        """How some drawing differs from the mean one, times 0 to `most`."""
        import torch

        share = self._rng.uniform(0.0, most, (count, 1)).astype(np.float32)
        return torch.from_numpy(share) * self._image_NF[self._rng.integers(0, len(self._image_NF), count)]

    def _noisy_texts(self, rows_B: NDArray[np.int64]) -> torch.Tensor:
        import torch

        text_BE = self._text_ME[rows_B]
        return text_BE + torch.randn_like(text_BE) * (self._config.text_noise * self._text_ME.std())

    def _state(self) -> dict[str, torch.Tensor]:
        """The parameters, with the standardisation of the image features folded into the first layer."""
        import torch

        first: Any = self._image_head[0]
        last: Any = self._image_head[-1]
        std_F, mean_F = torch.from_numpy(self._std_F), torch.from_numpy(self._mean_F)
        weight_HF = first.weight / std_F
        state: dict[str, Any] = {
            "visual.head.mlp.fc1.weight": weight_HF,
            "visual.head.mlp.fc1.bias": first.bias - weight_HF @ mean_F,
            "visual.head.mlp.fc2.weight": last.weight,
            "visual.head.mlp.fc2.bias": last.bias,
            "text.proj.0.weight": self._text_head[0].weight,
            "text.proj.2.weight": self._text_head[2].weight,
            "logit_scale": self._log_scale,
        }
        return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


def _draw(rng: np.random.Generator, available: int, count: int) -> NDArray[np.int64]:
    """Without repetition, which would set a pair against itself; fewer than asked for where there are fewer."""
    return rng.permutation(available)[:count]


def _image_head(features: int, config: FitConfig) -> nn.Sequential:
    """The `Mlp` of timm as open_clip's `timm_proj: mlp` builds it: 2 D hidden units."""
    from torch import nn

    hidden = 2 * config.embed_dim
    return nn.Sequential(
        nn.Linear(features, hidden), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(hidden, config.embed_dim)
    )


def _text_head(features: int, embed_dim: int) -> nn.Sequential:
    """open_clip's `hf_proj_type: mlp`: (E + D) / 2 hidden units, no biases."""
    from torch import nn

    hidden = (features + embed_dim) // 2
    return nn.Sequential(nn.Linear(features, hidden, bias=False), nn.GELU(), nn.Linear(hidden, embed_dim, bias=False))


def _prototypes(unit_NF: Floats, classifier_CF: Floats, concept_KC: Floats) -> Floats:
    """Where the images of each concept lie, from the weights of a linear classifier alone.

    A weight vector is a filter, not a pattern: it suppresses what is common. Multiplied by the features' covariance
    it becomes the pattern (Haufe et al. 2014, theorem 1). Scaled to the length of a drawing's features, centred.

    Returns:
        float32 `[K, F]`, in standardised features.
    """
    pattern_CF = classifier_CF @ np.cov(unit_NF.T).astype(np.float32)
    length = np.linalg.norm(unit_NF, axis=1).mean()
    pattern_CF *= length / np.linalg.norm(pattern_CF, axis=1, keepdims=True)
    pattern_CF -= pattern_CF.mean(axis=0)
    return (concept_KC @ pattern_CF).astype(np.float32)


def _clip_loss(logits_BB: torch.Tensor, same_BB: torch.Tensor) -> torch.Tensor:
    import torch
    from torch.nn import functional

    own = torch.arange(len(logits_BB))
    hidden_BB = same_BB & ~torch.eye(len(own), dtype=torch.bool)
    rivals_BB = logits_BB.masked_fill(hidden_BB, -torch.inf)
    return (functional.cross_entropy(rivals_BB, own) + functional.cross_entropy(rivals_BB.T, own)) / 2


def _sigmoid_loss(logits_BB: torch.Tensor, same_BB: torch.Tensor) -> torch.Tensor:
    import torch
    from torch.nn import functional

    own_BB = torch.eye(len(logits_BB), dtype=torch.bool)
    signed_BB = torch.where(own_BB, logits_BB, -logits_BB)
    return -functional.logsigmoid(signed_BB).masked_fill(same_BB & ~own_BB, 0.0).sum() / len(logits_BB)
