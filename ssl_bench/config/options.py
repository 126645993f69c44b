"""The typed options that every command shares. Torch-free: the command line reads them before anything heavy loads."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ssl_bench.config.constraints import (
    Ascending,
    Fraction,
    ImageSize,
    Matching,
    NonNegativeFloat,
    NonNegativeInt,
    PathText,
    PositiveFloat,
    PositiveInt,
    Precision,
    ProperFraction,
    Range,
    Seed,
    TwoNumbers,
    Width,
)
from ssl_bench.errors import UserError

LOGGERS = r"(csv|wandb|tensorboard|mlflow)(,(csv|wandb|tensorboard|mlflow))*"
Devices = Annotated[
    int | str, Matching(r"auto|-1|[1-9]\d{0,3}|\d{1,3}(,\d{1,3})+", "auto, a number from 1, or a list such as 0,2")
]


@dataclass(frozen=True)
class BackboneOptions:
    """The network that is pretrained.

    Args:
        name: Any network of timm's, a tiny one of ours (`ssl-bench list backbones`), hf-hub:ORG/NAME, local-dir:PATH,
            or a class of yours, my_package.net.Net, whose forward gives (images, D) features.
        img_size: Pixels of a (square) input; the data's own size when not given.
        patch_size: Pixels of a patch; for ViTs.
        width: Embedding dimension of a ViT or Swin, or the factor on every channel count of a ResNet.
        depth: Blocks of a ViT.
        num_heads: Attention heads of a ViT.
        drop_path: Stochastic depth at the last block, growing linearly from 0.
        small_stem: 3x3 stride-1 first convolution and no max-pool, for ResNets; when not given, at 64 px or less.
        timm_args: Whatever else the constructor takes: `{mlp_ratio: 2}`, `{depths: [2, 2, 18, 2], window_size: 6}`.
        selective_kernel: Convolutions of two streams that the image mixes, and ResNet-D's stem and shortcuts, for
            bottleneck ResNets (SimCLRv2).
        absolute_positions: Give a Swin learned absolute positions besides its relative ones; timm's have none.
        interpolate_offset: At other sizes than img_size, a ViT's positions are resampled by (side + offset) / native
            side, DINO's 0.1 when not given; 0 asks for that many positions, as MAE and DINOv2 with registers do.
        interpolate_antialias: Smooth positions that are resampled to fewer, as DINOv2 with registers does.
        channels: Of an input image; the data's own when not given.
        pretrained: Start from the weights that timm has for this name, downloaded once, not from random ones.
        weights: Start from this file's: any that `ssl-bench import` reads, or the backbone of a run's folder.
    """

    name: str = "vit_nano_patch4_32"
    img_size: ImageSize | None = None
    patch_size: Annotated[int, Range(min=1, max=512)] | None = None
    width: Width | None = None
    depth: Annotated[int, Range(min=1, max=1000)] | None = None
    num_heads: Annotated[int, Range(min=1, max=1024)] | None = None
    drop_path: ProperFraction = 0.0
    small_stem: bool | None = None
    timm_args: dict[str, Any] | None = None
    selective_kernel: bool | None = None
    absolute_positions: bool | None = None
    interpolate_offset: Annotated[float, Range(min=0, max=1)] | None = None
    interpolate_antialias: bool | None = None
    channels: Annotated[int, Range(min=1, max=512)] | None = None
    pretrained: bool | None = None
    weights: PathText | None = None


@dataclass(frozen=True)
class DataOptions:
    """The images.

    Args:
        name: A data set (`ssl-bench list data`), the path of your own images, or hf:ORG/NAME of the Hugging Face hub.
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
        value_range: Values that become black and white in images with more than 8 bits or a sign: "0,4095", say;
            guessed from the whole set and printed when not given, or auto.
        label_column: Column (of tars: ending or JSON field) that holds the classes, when its name is none of the usual
            ones or there are several; none for no labels.
        channels: Of an image: 1 keeps gray files gray, with all their bits; arrays have their own, files otherwise RGB.
    """

    name: str = "digits-canvas"
    root: PathText | None = None
    download: bool = False
    batch_size: Annotated[int, Range(min=1, max=1_000_000)] = 256
    num_workers: Annotated[int, Range(min=0, max=1024)] = 2
    image_size: ImageSize | None = None
    val_fraction: ProperFraction = 0.1
    split_seed: Seed = 0
    strict: bool = False
    label_fraction: Fraction | None = None
    value_range: Annotated[str, TwoNumbers()] | None = None
    label_column: str | None = None
    channels: Annotated[int, Range(min=1, max=512)] | None = None


@dataclass(frozen=True)
class Optim:
    """How weights move. Learning rates follow a linear warm-up, then the schedule, per step.

    Args:
        name: adamw, sgd, lars (learning rate outside the momentum buffer: BYOL, MAE), lars_tf (inside: SimCLR) or larc
            (SGD on gradients scaled per tensor, biases and norms too: SwAV).
        base_lr: Learning rate for 256 images; see `scaling`.
        scaling: linear: base_lr x images per step / 256. sqrt: base_lr x sqrt(images per step). none: as it stands.
        weight_decay: On tensors of two or more dimensions; biases and norms have none but in methods that say so.
        weight_decay_end: When given, weight decay follows a cosine from weight_decay to this.
        momentum: Of sgd and lars.
        betas: Of adamw.
        schedule: cosine: half a cosine from the end of the warm-up to `min_lr` (SimCLR, BYOL, MAE). cosine_dino: the
            same, one step ahead in the warm-up (DINO, iBOT, CAE, SwAV). cosine_epoch: the same as cosine, with one
            rate for all steps of an epoch once warmed up (SimSiam). cosine_ahead: the same as cosine, one step ahead,
            and weight decay with it (I-JEPA). cosine_simmim: a cosine over the whole run that the warm-up hides the
            beginning of. steps_simmim: a tenth from each of `milestones` on.
        warmup_epochs: Epochs of linear warm-up.
        warmup_lr: Where the warm-up starts, before scaling.
        min_lr: Where the cosine ends, before scaling.
        milestones: Epochs at which steps_simmim divides the rate by ten.
        clip: Largest gradient norm; None leaves gradients alone.
        clip_per: The norm is of all gradients together (model) or of each tensor (tensor, DINO).
        layer_decay: Factor on the rate per block or stage of the backbone, from its output down; for continuing from
            weights. All layers learn alike when not given.
    """

    name: Literal["adamw", "sgd", "lars", "lars_tf", "larc"] = "adamw"
    base_lr: NonNegativeFloat = 1e-3
    scaling: Literal["linear", "sqrt", "none"] = "linear"
    weight_decay: NonNegativeFloat = 0.05
    weight_decay_end: NonNegativeFloat | None = None
    momentum: ProperFraction = 0.9
    betas: tuple[ProperFraction, ProperFraction] = (0.9, 0.999)
    schedule: Literal["cosine", "cosine_dino", "cosine_epoch", "cosine_ahead", "cosine_simmim", "steps_simmim"] = (
        "cosine"
    )
    warmup_epochs: NonNegativeFloat = 10.0
    warmup_lr: NonNegativeFloat = 0.0
    min_lr: NonNegativeFloat = 0.0
    milestones: Annotated[tuple[PositiveFloat, ...], Ascending()] = ()
    clip: PositiveFloat | None = None
    clip_per: Literal["model", "tensor"] = "model"
    layer_decay: Fraction | None = None

    def __post_init__(self) -> None:
        floor = self.min_lr if self.schedule != "steps_simmim" else 0.0  # which has none
        for name, rate in (("min_lr", floor), ("warmup_lr", self.warmup_lr)):
            if rate > self.base_lr:
                raise UserError(f"--optim.{name} {rate:g} is above --optim.base_lr {self.base_lr:g}: lower it")


@dataclass(frozen=True)
class TrainerOptions:
    """Passed to Lightning's Trainer, but for what is explained otherwise.

    Args:
        max_epochs: Passes over the training images.
        max_steps: Optimiser steps after which to stop, whatever max_epochs says; -1 for no limit.
        accelerator: The kind of device; auto is a GPU where there is one.
        devices: How many, or which (0,2); -1 for all; auto: all GPUs, or as many as torchrun or srun started processes.
        num_nodes: Machines; start the command on each with torchrun or srun.
        strategy: How devices share the work; auto is ddp where there are several; ddp_find_unused_parameters_true for a
            method of yours that needs it.
        precision: Number format; auto is bf16-mixed on GPUs and CPUs that have it, 32-true elsewhere.
        compile: Compile the network's blocks (torch.compile): some minutes at the start, faster steps on GPUs.
        accumulate_grad_batches: Batches whose gradients make one step.
        sync_batchnorm: Batch norm over the images of all devices, as the papers have it.
        limit_train_batches: Batches, or fraction of them, per epoch; None for all.
        log_every_n_steps: Steps between rows of metrics.csv.
        checkpoint_minutes: Between checkpoints within an epoch; 0 for one after each epoch alone.
        requeue: On SIGUSR1, save, have SLURM queue the job again (scontrol requeue) and stop; otherwise save and go on.
        fast_dev_run: One batch, nothing written: does it run at all?
        callbacks: Lightning callbacks of yours, class paths with commas, each made without arguments.
        loggers: Where numbers go besides metrics.csv, with commas: csv, wandb (as --wandb auto), tensorboard, mlflow.
        profiler: Time of each part of training in the run's folder: simple, advanced, or pytorch for each operator.
        checkpoint_activations: Compute the activations of each block again in the backward rather than keep them: less
            memory, slower steps, the same numbers.
        ema: Decay of an average of the backbone's weights over the steps, 0.999 say, saved as its branch `ema`.
        deterministic: Only algorithms that give the same numbers again; slower, and an error where there is none.
        benchmark: Let cuDNN try which algorithm is fastest, for inputs of one size.
        detect_anomaly: Stop at the operation whose gradient is no number; slow.
        enable_model_summary: Print the method's parts and their parameters at the start.
    """

    max_epochs: PositiveInt = 100
    max_steps: Annotated[int, Range(min=1, also=(-1,))] = -1
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    devices: Devices = "auto"
    num_nodes: PositiveInt = 1
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true"] = "auto"
    precision: Precision = "auto"
    compile: bool = False
    accumulate_grad_batches: PositiveInt = 1
    sync_batchnorm: bool = True
    limit_train_batches: PositiveInt | Fraction | None = None
    log_every_n_steps: PositiveInt = 50
    checkpoint_minutes: PositiveFloat = 15.0
    requeue: bool = False
    fast_dev_run: bool = False
    callbacks: str | None = None
    loggers: Annotated[str, Matching(LOGGERS, "of csv, wandb, tensorboard, mlflow, with commas")] | None = None
    profiler: Literal["simple", "advanced", "pytorch"] | None = None
    checkpoint_activations: bool | None = None
    ema: Annotated[float, Range(above=0, below=1)] | None = None
    deterministic: bool | None = None
    benchmark: bool | None = None
    detect_anomaly: bool | None = None
    enable_model_summary: bool | None = None


@dataclass(frozen=True)
class ProbeOptions:
    """What is watched during pretraining, on the validation split: k-NN and linear accuracy, spread, rank of features.

    Args:
        every_n_epochs: Epochs between probes; 0 for none. When not given, ten times in a run.
        images: At most so many training images make the bank, and a quarter as many are queries.
    """

    every_n_epochs: NonNegativeInt | None = None
    images: PositiveInt = 4096


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


@dataclass(frozen=True)
class DryRunOptions:
    """What a run is to be planned for, where it is not this machine.

    Args:
        memory: GiB of a device.
        rate: Images a second of all devices together.
        format: How it is printed.
    """

    memory: PositiveFloat | None = None
    rate: PositiveFloat | None = None
    format: Literal["table", "json"] = "table"
