"""The first hidden layer of a method's projection head, from which SimCLRv2 fine-tunes: read from a run's checkpoint.

A hidden layer is a Linear, a batch norm where the head has them, and the head's nonlinearity. A head of one layer has
none. MAE, SimMIM, CAE and BEiT have no such head; LeJEPA's follows another layer.

Shapes: D features of the backbone, H of the hidden layer.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ssl_bench.errors import UserError
from ssl_bench.models.weights_files import read_pickled

METHODS = (
    *("simclr", "simclrv2", "byol", "moco-v3", "moby", "simsiam", "barlow-twins", "vicreg", "swav"),
    *("dino", "dinov2", "ibot"),
)
FOLLOWERS = {  # where a moving average keeps its projector
    "byol": "target.module.1",
    "moco-v3": "teacher.module.1",
    "moby": "teacher.module.1",
}


def first_layer(weights: Mapping[str, Tensor], method: str, branch: str) -> nn.Sequential | None:
    """(B, D) features in, (B, H) out, in eval mode; None where the method has no such layer.

    Args:
        weights: Of the whole method, by its names.
        method: The method's name.
        branch: The network whose head it is: student or teacher; encoder, or nothing, where there is only one.
    """
    layer: nn.Sequential
    if method in ("simclr", "simclrv2") and "head.3.weight" in weights:
        linear, norm = _linear(weights, "head.0"), _norm(weights, "head.1")
        layer = nn.Sequential(linear, norm, nn.ReLU())
    elif method in ("byol", "moco-v3", "moby", "simsiam", "barlow-twins", "vicreg", "swav"):
        projector = FOLLOWERS[method] if branch == "teacher" else "projector"
        if f"{projector}.1.weight" not in weights:
            return None
        linear, norm = _linear(weights, f"{projector}.0"), _norm(weights, f"{projector}.1")
        layer = nn.Sequential(linear, norm, nn.ReLU())
    elif method in ("dino", "dinov2", "ibot"):
        head = "teacher.module.head.mlp" if branch == "teacher" else "head.mlp"
        if f"{head}.2.weight" not in weights:
            return None
        layer = nn.Sequential(_linear(weights, f"{head}.0"), nn.GELU())
    else:
        return None
    return layer.eval()


def load_first_layer(run: Path, method: str, branch: str) -> nn.Sequential | None:
    """The same from a run's folder; None, too, where it has no checkpoint any more.

    Raises:
        UserError: The checkpoint is damaged.
    """
    file = run / "checkpoints" / "last.ckpt"
    if method not in METHODS or not file.exists():
        return None
    try:
        return first_layer(read_pickled(file, run)["state_dict"], method, branch)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{file} is damaged ({type(error).__name__}): restore it, or remove it to go without") from None


def _linear(weights: Mapping[str, Tensor], name: str) -> nn.Linear:
    weight = weights[f"{name}.weight"]
    linear = nn.Linear(weight.shape[1], weight.shape[0], f"{name}.bias" in weights, device="meta").to_empty(
        device="cpu"
    )
    _fill(linear, weights, name)
    return linear


def _norm(weights: Mapping[str, Tensor], name: str) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(len(weights[f"{name}.weight"]))
    _fill(norm, weights, name)
    return norm


def _fill(module: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    module.load_state_dict({own: weights[f"{name}.{own}"].clone() for own in module.state_dict()})
