"""Flags of an MAE run that takes a second."""

TINY = [
    "--method.decoder_dim=16",
    "--method.decoder_depth=1",
    "--method.decoder_heads=2",
    "--backbone=vit_pico_patch4_32",
    "--backbone.img_size=8",
    "--backbone.patch_size=2",
    "--backbone.depth=1",
    "--data=digits",
    "--data.batch_size=64",
    "--trainer.max_epochs=3",
    "--trainer.accumulate_grad_batches=1",
    "--trainer.limit_train_batches=4",
    "--trainer.precision=32-true",
    "--optim.base_lr=1e-2",
    "--optim.warmup_epochs=1",
    "--trainer.accelerator=cpu",
    "--probe.images=64",
    "--probe.every_n_epochs=3",
]
