"""The typed options that every command shares. Torch-free: the command line reads them before anything heavy loads."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class BackboneOptions:
    """The network that is pretrained.

    Args:
        name: Any timm ViT, BEiT, Swin or ResNet, or a tiny one of ours (`ssl-bench list backbones`).
        img_size: Pixels of a (square) input; the data's own size when not given.
        patch_size: Pixels of a patch; for ViTs.
        width: Embedding dimension of a ViT or Swin, or the factor on every channel count of a ResNet.
        depth: Blocks of a ViT.
        num_heads: Attention heads of a ViT.
        drop_path: Stochastic depth at the last block, growing linearly from 0.
        small_stem: 3x3 stride-1 first convolution and no max-pool, for ResNets; when not given, at 64 px or less.
        timm_args: Whatever else timm's constructor takes: `{mlp_ratio: 2}`, `{depths: [2, 2, 18, 2], window_size: 6}`.
        selective_kernel: Convolutions of two streams that the image mixes, and ResNet-D's stem and shortcuts, for
            bottleneck ResNets (SimCLRv2).
        absolute_positions: Give a Swin learned absolute positions besides its relative ones; timm's have none.
        interpolate_offset: At other sizes than img_size, a ViT's positions are resampled by (side + offset) / native
            side, DINO's 0.1 when not given; 0 asks for that many positions, as MAE and DINOv2 with registers do.
        interpolate_antialias: Smooth positions that are resampled to fewer, as DINOv2 with registers does.
    """

    name: str = "vit_nano_patch4_32"
    img_size: int | None = None
    patch_size: int | None = None
    width: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    drop_path: float = 0.0
    small_stem: bool | None = None
    timm_args: dict[str, Any] | None = None
    selective_kernel: bool | None = None
    absolute_positions: bool | None = None
    interpolate_offset: float | None = None
    interpolate_antialias: bool | None = None


@dataclass(frozen=True)
class DataOptions:
    """The images.

    Args:
        name: A data set (`ssl-bench list data`), or `folder` / `parquet` for your own.
        root: Folder of the files; the downloads' folder for torchvision's sets.
        download: Fetch a torchvision set that is not under root yet.
        batch_size: Images per batch and device.
        num_workers: Decoding processes for photographs; small images stay in memory and need none.
        image_size: Pixels that images are brought to; their own size when they all share one of at most 96 px.
        val_fraction: Class-stratified part of the training images on which anything is chosen.
        split_seed: Fixes that part; not the run's seed, so that all runs choose on the same images.
        strict: Stop at a broken file rather than skip and count it.
        label_fraction: Part of the training labels that a method which learns from labels sees: equally many of each
            class, fixed by split_seed, none of them of the validation part; all when not given.
    """

    name: str = "digits-canvas"
    root: str | None = None
    download: bool = False
    batch_size: int = 256
    num_workers: int = 2
    image_size: int | None = None
    val_fraction: float = 0.1
    split_seed: int = 0
    strict: bool = False
    label_fraction: float | None = None


@dataclass(frozen=True)
class Optim:
    """How weights move. Learning rates follow a linear warm-up, then the schedule, per step.

    Args:
        name: adamw, sgd, lars (learning rate outside the momentum buffer: BYOL, MAE) or lars_tf (inside: SimCLR).
        base_lr: Learning rate for 256 images; see `scaling`.
        scaling: linear: base_lr x images per step / 256. sqrt: base_lr x sqrt(images per step). none: as it stands.
        weight_decay: On tensors of two or more dimensions; biases and norms have none.
        weight_decay_end: When given, weight decay follows a cosine from weight_decay to this.
        momentum: Of sgd and lars.
        betas: Of adamw.
        schedule: cosine: half a cosine from the end of the warm-up to `min_lr` (SimCLR, BYOL, MAE). cosine_dino: the
            same, one step ahead in the warm-up (DINO, iBOT, CAE). cosine_simmim: a cosine over the whole run that
            the warm-up hides the beginning of. steps_simmim: a tenth from each of `milestones` on.
        warmup_epochs: Epochs of linear warm-up.
        warmup_lr: Where the warm-up starts, before scaling.
        min_lr: Where the cosine ends, before scaling.
        milestones: Epochs at which steps_simmim divides the rate by ten.
        clip: Largest gradient norm; None leaves gradients alone.
        clip_per: The norm is of all gradients together (model) or of each tensor (tensor, DINO).
    """

    name: Literal["adamw", "sgd", "lars", "lars_tf"] = "adamw"
    base_lr: float = 1e-3
    scaling: Literal["linear", "sqrt", "none"] = "linear"
    weight_decay: float = 0.05
    weight_decay_end: float | None = None
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["cosine", "cosine_dino", "cosine_simmim", "steps_simmim"] = "cosine"
    warmup_epochs: float = 10.0
    warmup_lr: float = 0.0
    min_lr: float = 0.0
    milestones: tuple[float, ...] = ()
    clip: float | None = None
    clip_per: Literal["model", "tensor"] = "model"


@dataclass(frozen=True)
class TrainerOptions:
    """Passed to Lightning's Trainer.

    Args:
        max_epochs: Passes over the training images.
        max_steps: Optimiser steps after which to stop, whatever max_epochs says; -1 for no limit.
        accelerator: auto, cpu, gpu, mps.
        devices: How many, or which ("0,2"), or auto.
        num_nodes: Machines; start the command on each with torchrun or srun.
        strategy: auto, ddp, fsdp, ...
        precision: auto (bf16-mixed on GPUs and CPUs that have it, 32-true elsewhere), 32-true, bf16-mixed, ...
        compile: Compile the network's blocks (torch.compile): some minutes at the start, faster steps on GPUs.
        accumulate_grad_batches: Batches whose gradients make one step.
        sync_batchnorm: Batch norm over the images of all devices, as the papers have it.
        limit_train_batches: Batches, or fraction of them, per epoch; None for all.
        log_every_n_steps: Steps between rows of metrics.csv.
        fast_dev_run: One batch, nothing written: does it run at all?
    """

    max_epochs: int = 100
    max_steps: int = -1
    accelerator: str = "auto"
    devices: int | str = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "auto"
    compile: bool = False
    accumulate_grad_batches: int = 1
    sync_batchnorm: bool = True
    limit_train_batches: int | float | None = None
    log_every_n_steps: int = 50
    fast_dev_run: bool = False


@dataclass(frozen=True)
class ProbeOptions:
    """What is watched during pretraining, on the validation split: k-NN and linear accuracy, spread, rank of features.

    Args:
        every_n_epochs: Epochs between probes; 0 for none. When not given, ten times in a run.
        images: At most so many training images make the bank, and a quarter as many are queries.
    """

    every_n_epochs: int | None = None
    images: int = 4096


@dataclass(frozen=True)
class WandbOptions:
    """Whether and where runs are logged to W&B.

    Args:
        mode: off, online, offline (written into the run folder, for `wandb sync`), or auto: online if a key is there.
        project: Name of the W&B project, or entity/project.
        entity: User or team it belongs to; None for the key's own, or the one of entity/project.
        group: Under which W&B shows runs together.
        checkpoints: Upload weights and the last checkpoint too, as an artifact.
    """

    mode: str = "off"
    project: str = "ssl-bench"
    entity: str | None = None
    group: str | None = None
    checkpoints: bool = False
