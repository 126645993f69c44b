"""The last blocks of a network, trained at several depths at once on top of one frozen rest.

A network of L blocks is cut before its last k. What lies below a cut does not learn, so one pass of it gives the states
at all cuts, and each depth goes on from its own with its own copy of what lies above. k = 0.5 cuts the last block
between its attention and its MLP, k = L before the network's first layer. Blocks are those of a ViT, BEiT, EVA or Swin,
or the residual blocks of a ResNet. Of any other network k counts stages, and as none of them can go on from a state,
each depth runs the whole network. A few lines above 300: where a network is cut and how it goes on from there must
agree for each family.

Shapes: B images of a batch, 3 x s x s pixels, P prefix tokens, N patches, D features, K classes; a Swin's or ResNet's
map has h x w places.
"""

import copy
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, final

import torch
from timm.models import beit, swin_transformer, vision_transformer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ssl_bench.data.evaluation_batches import evaluation_batches
from ssl_bench.data.splits import Split, ValidationSplit
from ssl_bench.evaluation.cost import progress
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.finetuning.images import Batch, Batches
from ssl_bench.finetuning.model import FineTuneModel, Recipe, optimizer
from ssl_bench.finetuning.training import POINTS, VALIDATION, Diverged, accuracy, autocast, mixed, update
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.stages import blocks, depth_of, stages
from ssl_bench.runtime.acceleration import write_out_attention
from ssl_bench.runtime.precision import full_precision

# Blocks whose MLP is a residual branch of its own, after that of the attention.
HALVED = (vision_transformer.Block, beit.Block, swin_transformer.SwinTransformerBlock)


# --- where a network is cut


def usual_depths(network: Backbone) -> tuple[float, ...]:
    """Numbers of blocks to tune, rising from 0 to all L of them.

    MAE's 0, 0.5, 1, 2, 4, 6, 12, 18, 24 as far as the network goes. Of a ResNet: its last block, its last stage, its
    last two stages.
    """
    total = depth_of(network)
    found: list[float] = [0, 0.5, 1, 2, 4, 6, 12, 18, 24]
    if network.is_resnet:
        stages: Any = network.model
        last, before = len(stages.layer4), len(stages.layer3)
        found = [0, 1, last, last + before]
    return (*sorted({depth for depth in found if depth < total and exists(network, depth)}), total)


def exists(network: Backbone, depth: float) -> bool:
    """Whether a network can be cut before its last ``depth`` blocks."""
    if depth == 0.5:
        return not network.is_pooled and type(blocks(network)[-1]) in HALVED
    return depth in range(depth_of(network) + 1)


def states(network: Backbone, images: Tensor, depths: Collection[float]) -> dict[float, Tensor]:
    """What the blocks above each cut receive, all of it from one pass that goes no further than it must.

    Args:
        network: In whatever mode it is; gradients are the caller's business, too.
        images: (B, 3, s, s), normalised.
        depths: Above 0 and of those that exist.

    Returns:
        Depth -> (B, P + N, D) of a ViT, (B, h, w, D) of a Swin, or its (B, hw, D) between attention and MLP,
        (B, D, h, w) of a ResNet; the images themselves where all blocks are above the cut, or none can go on.
    """
    if network.is_pooled:
        return dict.fromkeys(depths, images)
    every = blocks(network)
    found = {depth: images for depth in depths if depth == len(every)}
    wanted = sorted(set(depths) - set(found), reverse=True)  # in the order in which the pass comes by
    assert all(depth > 0 and exists(network, depth) for depth in wanted), f"no such cuts: {wanted}"
    if not wanted:
        return found

    def watch(depth: float) -> RemovableHandle:
        def look(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            found[depth] = given[0]
            if depth == wanted[-1]:
                raise _Enough

        module = every[-1].norm2 if depth == 0.5 else every[-int(depth)]
        assert isinstance(module, nn.Module)
        return module.register_forward_pre_hook(look)

    handles = [watch(depth) for depth in wanted]
    try:
        network(images)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found


def resumed(network: Backbone, state: Tensor, depth: float) -> Tensor:
    """What comes out of the last block, before the final norm, when its last ``depth`` blocks go on from a state.

    Args:
        network: Whose blocks above the cut are used; its shared relative positions, too, and nothing else.
        state: Of this depth, as `states` gives it; not of all blocks.
        depth: Above 0 and below L.

    Returns:
        (B, P + N, D) of a ViT, (B, hw, D) of a Swin, (B, D, h, w) of a ResNet.
    """
    every = blocks(network)
    if depth == 0.5:
        return _mlp(every[-1], state)
    model: Any = network.model
    given = network.block_arguments((network.grid, network.grid)) if network.is_vit else [{}] * len(every)
    merges = {stage.blocks[0]: stage.downsample for stage in model.layers} if network.is_swin else {}
    for at, (block, more) in enumerate(zip(every[-int(depth) :], given[-int(depth) :], strict=True)):
        if at and block in merges:  # patches are merged after the last block of the stage before, as Swin has it
            state = merges[block](state)
        state = block(state, **more)
    return state.flatten(1, 2) if network.is_swin else state


def restrict(network: Backbone, depth: float) -> None:
    """Leave the last ``depth`` blocks alone trainable, and blocks below them out: `resumed` needs none of those.

    Everything else stays frozen: embeddings, prefix tokens, relative positions that blocks share. The final norm stays
    trainable. Nothing happens to a network whose blocks are all above the cut, and none is left out of one that is
    tuned by stages.
    """
    assert depth > 0 and exists(network, depth)
    if depth == (total := depth_of(network)):
        return
    network.requires_grad_(False)
    if network.is_pooled:
        found = stages(network.model)
        for name, parameter in network.model.named_parameters():
            parameter.requires_grad_(found[name] >= total - depth)
        return
    every = blocks(network)
    if not network.is_resnet:
        network.model.norm.requires_grad_(True)
    for part in _mlp_parts(every[-1]) if depth == 0.5 else every[-int(depth) :]:
        part.requires_grad_(True)
    below = set(every[: len(every) - math.ceil(depth)])
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if child in below:
                setattr(parent, name, nn.Identity())  # its place keeps the names of the others


class _Enough(Exception):
    """All states that were wanted are there."""


def _mlp(block: nn.Module, state: Tensor) -> Tensor:
    """The second residual branch of a block."""
    assert isinstance(block, HALVED)
    branch: Tensor = block.mlp(block.norm2(state))
    if isinstance(block, beit.Block) and block.gamma_2 is not None:
        branch = block.gamma_2 * branch
    elif isinstance(block, vision_transformer.Block):
        branch = block.ls2(branch)
    kept: Tensor = block.drop_path2(branch)
    return state + kept


def _mlp_parts(block: nn.Module) -> Iterator[nn.Module | nn.Parameter]:
    """What learns in that branch."""
    assert isinstance(block, HALVED)
    yield from (block.norm2, block.mlp)
    if isinstance(block, beit.Block) and block.gamma_2 is not None:
        yield block.gamma_2
    elif isinstance(block, vision_transformer.Block):
        yield block.ls2


# --- tops that learn


@final
class Top:
    """A private copy of what lies above a cut, its head included, in training.

    Args:
        model: A whole network with its head; cut here, in place.
        depth: Blocks above the cut.
        recipe: How it learns.
    """

    def __init__(self, model: FineTuneModel, depth: float, recipe: Recipe) -> None:
        self.whole = depth == depth_of(model.backbone) or model.backbone.is_pooled
        restrict(model.backbone, depth)
        self.model, self.depth, self.recipe = model, depth, recipe
        learner = optimizer(model, recipe)
        self.trained: list[Tensor] = [p for group in learner.param_groups for p in group["params"]]
        self.optimizer: torch.optim.Optimizer | None = learner
        self.curve: dict[str, list[float]] = {"epoch": [], "loss": [], VALIDATION: []}
        self.diverged: int | None = None  # by which epoch

    @property
    def trainable(self) -> int:
        """Numbers that learn."""
        return sum(p.numel() for p in self.trained)

    def logits(self, state: Tensor) -> Tensor:
        """(B, K) from the state at its cut."""
        if self.whole:
            found: Tensor = self.model(state)
            return found
        return self.model.classify(resumed(self.model.backbone, state, self.depth))

    def train(self) -> None:
        """Training mode of what learns; the frozen part stays in eval mode."""
        self.model.train()
        for module in self.model.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()

    def step(self, state: Tensor, batch: Batch, step: int, batches: Batches) -> Tensor:
        """One update; the loss before it."""
        assert self.optimizer is not None, "it has learned already"
        return update(self.optimizer, self.recipe, batches, step, batch, partial(self.logits, state))

    def finish(self) -> None:
        """No more steps: eval mode, and the optimiser's memory is free."""
        self.optimizer = None
        self.model.eval().zero_grad()


def tune_together(tops: Sequence[Top], batches: Batches, validation: ValidationSplit, what: str) -> None:
    """Train tops on the same batches, the trunk run once for all of them; each ends as after its recipe's last epoch.

    Args:
        tops: Of one network, of any depths and numbers of epochs; what else their recipes say of batches is the same.
        batches: What they learn from.
        validation: On which each one's accuracy is taken now and then, its last epoch included.
        what: The progress bar says.

    A top whose loss is no number says by which epoch it diverged, and is left out from then on: it shares nothing that
    learns with the others.

    Raises:
        Diverged: All have diverged.
    """
    frozen, most = batches.frozen, max(top.recipe.epochs for top in tops)
    trunk = copy.deepcopy(_network(frozen))  # something may be done to its attention
    if mixed(batches.recipe, frozen.device) and frozen.device.type == "cpu":
        for network in (trunk, *(top.model for top in tops)):
            write_out_attention(network)
    watched = {round(most * point / POINTS) for point in range(1, POINTS + 1)}
    with full_precision(), closing(batches), progress(what, most * batches.steps, "steps") as bar:
        for epoch in range(most):
            learning = [top for top in tops if epoch < top.recipe.epochs and top.diverged is None]
            depths = {top.depth for top in learning}
            totals = torch.zeros(len(learning), device=frozen.device)
            for top in learning:
                top.train()
            for number, batch in enumerate(batches.epoch(epoch)):
                with torch.no_grad(), autocast(batches.recipe, frozen.device):
                    found = states(trunk, batch.images, depths)
                step = epoch * batches.steps + number
                losses = [top.step(found[top.depth], batch, step, batches) for top in learning]
                totals += torch.stack(losses)
                bar.update()
            last = [top for top in learning if epoch + 1 == top.recipe.epochs]
            means = dict(zip(learning, (totals / batches.steps).tolist(), strict=True))
            for top in learning:
                if not math.isfinite(means[top]):
                    top.diverged = epoch + 1
                    top.finish()
            if all(top.diverged for top in tops):
                raise Diverged(f"{what} diverged by epoch {epoch + 1}: give a smaller lr than {tops[0].recipe.lr}")
            looked_at = [top for top in (learning if epoch + 1 in watched else last) if top.diverged is None]
            for top, logits in zip(looked_at, logits_of_all(looked_at, frozen, validation), strict=True):
                top.curve["epoch"].append(epoch + 1.0)
                top.curve["loss"].append(means[top])
                top.curve[VALIDATION].append(accuracy(logits, validation))
            for top in last:
                if top.diverged is None:
                    top.finish()


def logits_of_all(tops: Sequence[Top], frozen: FeatureExtractor, split: Split) -> list[Tensor]:
    """(N, K) float32 logits by each top of a split's images, in its order, on the processor, in full precision.

    In eval mode: an image's logits do not depend on which others there are. Tops are left in that mode.
    """
    found: list[list[Tensor]] = [[] for _ in tops]
    if not tops:
        return []
    trunk = _network(frozen)
    for top in tops:
        top.model.eval()
    with torch.inference_mode(), full_precision():
        for images, _ in evaluation_batches(split, frozen.img_size, frozen.batch_size, frozen.num_workers):
            below = states(trunk, frozen.normalized(images), {top.depth for top in tops})
            for parts, top in zip(found, tops, strict=True):
                parts.append(top.logits(below[top.depth]).float().cpu())
    return [torch.cat(parts) for parts in found]


def _network(frozen: FeatureExtractor) -> Backbone:
    assert isinstance(frozen.network, Backbone), "raw pixels have no blocks"
    return frozen.network.eval()
