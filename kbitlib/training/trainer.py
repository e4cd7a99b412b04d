"""Training of one model at several lengths D along one run.

What is notable: a constant learning rate after warm-up, from which a short linear decay to zero branches off at 80 %
of each
length (Hu et al. 2024, MiniCPM; Haegele et al. 2024), so that one run gives a model at every D for little more than the
price of the longest. Batches are a pure function of (seed, step), and the state at each branch is kept, so a run that
was
killed goes on from the last branch and ends with the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors.torch import load, save
from torch import Tensor

from kbitlib.data.batches import random_batch, windows
from kbitlib.data.corpus import CorpusSettings, prepare
from kbitlib.data.corpus import load as load_corpus
from kbitlib.models.transformer import Shape, Transformer
from kbitlib.runs.store import Record, Result, Store
from kbitlib.training.evaluate import Estimate, window_losses

DECAY = 0.2  # share of a run in which the learning rate falls to zero: Haegele et al. 2024 find 10 to 20 % enough
BETAS = (0.9, 0.95)  # Adam's, as in Brown et al. 2020, appendix B
CLIP = 1.0  # largest gradient norm, from the same place
WARMUP_STEPS = 50
REFERENCE_WIDTH = 64


class Training(BaseModel):
    """What one model is trained on, how long, and how; the model is the one at the last of ``tokens``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: CorpusSettings
    shape: Shape
    seed: int = 0
    tokens: tuple[int, ...]  # increasing lengths D at which models branch off
    batch: int = Field(default=32, ge=1)  # sequences a step
    accumulate: int = Field(default=1, ge=1)  # parts in which a step's sequences pass through the model
    learning_rate: float = Field(gt=0)  # at width 64; see `rate`
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the products; weights and their sums stay in float32
    device: str = "cpu"
    held_out: int = Field(ge=1)  # tokens of the test split on which the loss is measured

    @model_validator(mode="after")
    def _lengths_make_sense(self) -> Training:
        if not self.tokens or any(b <= a for a, b in zip((0, *self.tokens), self.tokens, strict=False)):
            raise ValueError(f"tokens must be increasing positive lengths, not {list(self.tokens)}")
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} does not divide into {self.accumulate} parts")
        return self

    @property
    def rate(self) -> float:
        """Peak learning rate: inversely proportional to the square root of the width."""
        return self.learning_rate * (REFERENCE_WIDTH / self.shape.width) ** 0.5

    @property
    def parent(self) -> Training | None:
        """The same run up to the branch before."""
        return self.model_copy(update={"tokens": self.tokens[:-1]}) if len(self.tokens) > 1 else None

    def steps(self, share: float = 1.0) -> int:
        """Optimiser steps up to a share of the last length."""
        return round(share * self.tokens[-1] / (self.batch * self.shape.context))


class Run:
    """A model in training with its optimiser, at some step of the constant part or of a branch."""

    def __init__(self, settings: Training) -> None:
        self.settings = settings
        self.model = Transformer(settings.shape).initialise(settings.seed).to(settings.device)
        self.names = [name for name, _ in self.model.named_parameters()]
        self.optimiser = torch.optim.AdamW(self.model.parameters(), betas=BETAS, weight_decay=0.0, fused=True)
        self.step = 0

    def advance(self, train: np.ndarray, until: int, *, decay_from: int | None = None) -> Iterator[float]:
        """Take optimiser steps up to ``until``, yielding each batch's loss; the rate falls linearly from
        ``decay_from`` on."""
        self.model.train()
        while self.step < until:
            factor = min(1.0, (self.step + 1) / WARMUP_STEPS)
            if decay_from is not None:
                factor *= (until - self.step) / (until - decay_from)
            yield self._update(train, factor * self.settings.rate)
            self.step += 1

    def _update(self, train: np.ndarray, rate: float) -> float:
        s = self.settings
        batch = random_batch(train, batch=s.batch, context=s.shape.context, seed=s.seed, step=self.step)
        total = 0.0
        for part in torch.from_numpy(batch).to(s.device).chunk(s.accumulate):
            loss = language_model_loss(self.model, part, s.dtype) / s.accumulate
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return total

    def state(self) -> bytes:
        """Everything needed to go on with the same bits, as safetensors."""
        tensors = {f"model.{name}": p.detach() for name, p in self.model.named_parameters()}
        for name, p in self.model.named_parameters():
            for part in ("exp_avg", "exp_avg_sq"):
                tensors[f"{part}.{name}"] = self.optimiser.state[p][part]
        tensors["step"] = torch.tensor(self.step)
        return save(tensors)

    @torch.no_grad()
    def restore(self, state: bytes) -> None:
        tensors = load(state)
        self.step = int(tensors["step"])
        for name, p in self.model.named_parameters():
            p.copy_(tensors[f"model.{name}"])
            moments = {part: tensors[f"{part}.{name}"].to(p.device) for part in ("exp_avg", "exp_avg_sq")}
            self.optimiser.state[p] = {"step": torch.tensor(float(self.step), device=p.device), **moments}


def language_model_loss(model: torch.nn.Module, tokens: Tensor, dtype: str) -> Tensor:
    """Mean cross-entropy in nats of each next token of ``tokens`` (batch, context + 1)."""
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        logits = model(tokens[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


def held_out_windows(settings: Training, splits: dict[str, np.ndarray], split: str = "test") -> np.ndarray:
    """The windows (n, context + 1) on which every model of the family is measured."""
    return windows(splits[split], count_tokens=settings.held_out, context=settings.shape.context)


def train(settings: Training, store: Store) -> Result:
    """Train a model to the last of its lengths; a step of the store.

    The row holds the test loss, ``validation_loss`` (what choices are made by) and the FLOPs spent; the files are
    ``weights``
    of the decayed model, ``trunk``, from which a longer run goes on, and ``curve``, the training loss of every step.
    """
    splits = load_corpus(store.get_or_compute(prepare, settings.corpus))
    run = Run(settings)
    curve: list[float] = []
    if settings.parent:
        parent = store.get_or_compute(train, settings.parent)
        run.restore(parent.read("trunk.safetensors"))
        curve = json.loads(parent.read("curve.json"))[: run.step]
    branch, end = settings.steps(1 - DECAY), settings.steps()
    curve += run.advance(splits["train"], branch)
    trunk = run.state()
    curve += run.advance(splits["train"], end, decay_from=branch)
    test = Estimate.of(window_losses(run.model, held_out_windows(settings, splits), settings.device))
    validation = Estimate.of(
        window_losses(run.model, held_out_windows(settings, splits, "validation"), settings.device)
    )
    row = {
        "tokens": settings.tokens[-1],
        "loss": test.mean,
        "loss_se": test.se,
        "validation_loss": validation.mean,
        "flops": settings.shape.flops_per_token() * settings.tokens[-1],
    }
    weights = save({name: p.detach().cpu() for name, p in run.model.named_parameters()})
    files = {"weights.safetensors": weights, "trunk.safetensors": trunk, "curve.json": json.dumps(curve).encode()}
    return Result(rows=[row], files=files)


def load_model(settings: Training, record: Record) -> Transformer:
    """The trained model of a record of `train`."""
    model = Transformer(settings.shape)
    model.load_state_dict(load(record.read("weights.safetensors")))
    return model.to(settings.device).eval()
