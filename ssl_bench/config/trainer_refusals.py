"""Options of Lightning's Trainer that `--trainer.*` does not have, each with its reason. Torch-free.

They would contradict what a run's record says of it, or what the training loop here does itself.
"""

_NO_LOOP = "there is no validation, test or prediction loop: --probe.* watches pretraining, `evaluate` measures it"
_OURS = "the run's folder and its checkpoints are what a run is continued from"

REFUSED = {
    "trainer.min_epochs": "nothing ends a run before its schedule does: --trainer.max_epochs",
    "trainer.min_steps": "nothing ends a run before its schedule does: --trainer.max_steps",
    "trainer.max_time": "a run that stops early is not the one its record describes; SIGTERM saves it, to be continued",
    "trainer.overfit_batches": "the record would name images that were not seen: --trainer.limit_train_batches",
    "trainer.limit_val_batches": _NO_LOOP,
    "trainer.limit_test_batches": _NO_LOOP,
    "trainer.limit_predict_batches": _NO_LOOP,
    "trainer.val_check_interval": _NO_LOOP,
    "trainer.check_val_every_n_epoch": _NO_LOOP,
    "trainer.num_sanity_val_steps": _NO_LOOP,
    "trainer.inference_mode": _NO_LOOP,
    "trainer.gradient_clip_val": "clipping is part of the optimiser: --optim.clip",
    "trainer.gradient_clip_algorithm": "clipping is part of the optimiser: --optim.clip and --optim.clip_per",
    "trainer.logger": "several may be named: --trainer.loggers csv,wandb,tensorboard,mlflow",
    "trainer.default_root_dir": f"{_OURS}: --runs",
    "trainer.enable_checkpointing": f"{_OURS}: --trainer.checkpoint_minutes",
    "trainer.plugins": f"{_OURS}, whose plug-in is one already",
    "trainer.use_distributed_sampler": "the loaders share the images among processes themselves",
    "trainer.reload_dataloaders_every_n_epochs": "the order of images follows from the seed and the epoch",
    "trainer.enable_progress_bar": "standard output is for results, and a bar is shown on a terminal",
    "trainer.barebones": "it leaves out the checkpoints and metrics that a run consists of",
    "trainer.enable_autolog_hparams": "config.yaml holds all options, and loggers are given them",
    "trainer.model_registry": "it uploads checkpoints to a service of Lightning's: --wandb_checkpoints",
}
