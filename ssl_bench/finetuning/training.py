"""Training a copy of a backbone on labels: the loop, and what its network says of a split.

Nothing is shared between processes: those that torchrun started all do the same work and come to the same.

Shapes: B images of a batch, N of a split, K classes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.data.evaluation_batches import evaluation_batches
from ssl_bench.data.splits import LabelledSplit, Split, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.cost import progress
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.finetuning.images import Batch, Batches, drawing
from ssl_bench.finetuning.model import STEP, FineTuneModel, Recipe, optimizer, rate, set_rate
from ssl_bench.optim.optimizers import clip_gradients
from ssl_bench.runtime.acceleration import effective_precision, write_out_attention
from ssl_bench.runtime.precision import full_precision
from ssl_bench.runtime.seeds import derive

POINTS = 20  # times at most that accuracy on the validation split is taken along the way
VALIDATION = "validation accuracy"


class Diverged(UserError):
    """Training came to a loss that is no number: the rate was too high."""


Loss = Callable[[Tensor, Batch], Tensor]  # of (B, K) float32 logits


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Of soft targets, the mean over the images that have one."""
    labelled = (batch.targets > 0).any(1).sum().clamp_min(1)
    return -(batch.targets * F.log_softmax(logits, 1)).sum() / labelled


def mixed(recipe: Recipe, device: torch.device) -> bool:
    """Whether the recipe's forward passes are in bf16 here."""
    return effective_precision(recipe.precision, device.type) == "bf16-mixed"


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[object]:
    """The recipe's number format."""
    return torch.autocast(device.type, torch.bfloat16) if mixed(recipe, device) else nullcontext()


def update(
    optim: torch.optim.Optimizer,
    recipe: Recipe,
    batches: Batches,
    step: int,
    batch: Batch,
    forward: Callable[[], Tensor],
    loss: Loss = cross_entropy,
) -> Tensor:
    """One step of a recipe, whose draws follow from its number; the loss before it. ``forward`` gives (B, K) logits."""
    device = batches.frozen.device
    set_rate(optim, rate(recipe, step, batches.steps, batches.batch_size))
    with drawing(derive(recipe.seed, STEP, step), device):
        with autocast(recipe, device):
            logits = forward()
        value = loss(logits.float(), batch)
        optim.zero_grad()
        torch.autograd.backward(value)
    clip_gradients([p for group in optim.param_groups for p in group["params"]], recipe.clip, "model")
    optim.step()
    return value.detach()


def tune(
    model: FineTuneModel,
    batches: Batches,
    recipe: Recipe,
    validation: ValidationSplit | None = None,
    loss: Loss = cross_entropy,
    what: str = "fine-tuning",
) -> dict[str, list[float]]:
    """Train a model in place; it is left in eval mode, as after the last epoch.

    Args:
        model: To train.
        batches: What it learns from.
        recipe: How.
        validation: Images on which accuracy is taken after some epochs, the last among them; none when not given.
        loss: To minimise.
        what: The progress bar says.

    Returns:
        epoch, training loss and, given a validation split, validation accuracy: the series that were taken.

    Raises:
        Diverged: The loss is not a number.
    """
    frozen, device = batches.frozen, batches.frozen.device
    if mixed(recipe, device) and device.type == "cpu":
        write_out_attention(model)
    optim = optimizer(model, recipe)
    watched = {round(recipe.epochs * point / POINTS) for point in range(1, POINTS + 1)} | {recipe.epochs}
    curve: dict[str, list[float]] = {
        name: [] for name in ("epoch", "loss", *([] if validation is None else [VALIDATION]))
    }
    with full_precision(), closing(batches), progress(what, recipe.epochs * batches.steps, "steps") as bar:
        for epoch in range(recipe.epochs):
            model.train()
            total = torch.zeros((), device=device)
            for number, batch in enumerate(batches.epoch(epoch)):
                step = epoch * batches.steps + number
                total += update(optim, recipe, batches, step, batch, partial(model, batch.images), loss)
                bar.update()
            if epoch + 1 in watched:
                mean = float(total) / batches.steps
                if not np.isfinite(mean):
                    raise Diverged(f"{what} diverged by epoch {epoch + 1}: give a smaller lr than {recipe.lr}")
                curve["epoch"].append(epoch + 1.0)
                curve["loss"].append(mean)
                if validation is not None:
                    curve[VALIDATION].append(accuracy(logits_of(model, frozen, validation), validation))
    optim.zero_grad()  # gradients would be kept as long as the model is
    model.eval()
    return curve


def logits_of(model: nn.Module, frozen: FeatureExtractor, split: Split) -> Tensor:
    """(N, K) float32 logits of a split's images, in its order, on the processor: eval mode, full precision.

    An image's logits do not depend on which others there are.
    """
    training = model.training
    model.eval()
    batches = evaluation_batches(split, frozen.img_size, frozen.batch_size, frozen.num_workers)
    with torch.inference_mode(), full_precision():
        found = [model(frozen.normalized(images)).float().cpu() for images, _ in batches]
    model.train(training)
    return torch.cat(found)


def accuracy(logits: Tensor, split: LabelledSplit) -> float:
    """Share of a split's images whose largest of (N, K) logits is their class's."""
    return float((logits.argmax(1) == torch.as_tensor(split.labels)).double().mean())


def mean_loss(logits: Tensor, split: LabelledSplit) -> float:
    """Cross entropy of (N, K) logits; images of a class that no training image had are left out."""
    labels = torch.as_tensor(split.labels)
    known = labels < logits.shape[1]
    return float(F.cross_entropy(logits[known].double(), labels[known]))
