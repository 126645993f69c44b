"""Configurations of runs of a second, whose figures are drawn."""

from typing import Any

from tiny import TINY

from ssl_bench.config.fit_config import parse_fit

OWN = {
    "mae": TINY[:3],
    "simmim": ["--method.mask_cell=2"],
    "cae": [
        "--method.tokenizer=pixels",
        "--method.decoder_dim=16",
        "--method.decoder_heads=2",
        "--method.decoder_depth=1",
    ],
    "beit": ["--method.tokenizer=pixels"],
    "dinov2": [
        "--method.prototypes=16",
        "--method.hidden_dim=16",
        "--method.bottleneck_dim=8",
        "--method.local_size=4",
    ],
    "ibot": ["--method.prototypes=16", "--method.hidden_dim=16", "--method.bottleneck_dim=8", "--method.local_size=4"],
    "byol": ["--method.projection_dim=8", "--method.hidden_dim=16"],
}


def config(method: str, *flags: str) -> dict[str, Any]:
    shared = [flag for flag in TINY if not flag.startswith("--method.")]
    flags = (*shared, "--backbone.patch_size=2", "--trainer.max_epochs=2", "--trainer.limit_train_batches=2", *flags)
    return parse_fit([f"--method={method}", *OWN[method], *flags, "--probe.every_n_epochs=0"], {}).config
