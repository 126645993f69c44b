"""A classifier on a backbone's features: what methods that learn from labels train, and leave beside the backbone.

Shapes: B images, D features, K classes.
"""

from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from ssl_bench.errors import UserError
from ssl_bench.models.weights_files import read_json, read_tensors, shapes_of, tensor_shapes, write_weights
from ssl_bench.records.files import write_json


@final
class Classifier(nn.Module):
    """Hidden layers of the features' width, each Linear, batch norm, ReLU; then logits, all 0 in the beginning.

    Args:
        dim: D.
        classes: K.
        layers: Hidden ones.
        names: Of the classes, where they are not those of the images at hand.
    """

    def __init__(self, dim: int, classes: int, layers: int = 0, names: tuple[str, ...] | None = None) -> None:
        super().__init__()
        self.spec: dict[str, Any] = {"dim": dim, "classes": classes, "layers": layers}
        self.names = names
        hidden: list[nn.Module] = []
        for _ in range(layers):
            hidden += [nn.Linear(dim, dim, bias=False), nn.BatchNorm1d(dim), nn.ReLU()]
        self.hidden = nn.Sequential(*hidden)
        self.linear = nn.Linear(dim, classes)
        for module in self.hidden:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, K)."""
        logits: Tensor = self.linear(self.hidden(features))
        return logits


def save_classifier(folder: Path, classifier: Classifier, names: tuple[str, ...]) -> None:
    """classifier.safetensors and classifier.json beside a run's backbone, with the names of its classes."""
    write_weights(folder / "classifier.safetensors", classifier.state_dict())
    write_json(folder / "classifier.json", {**classifier.spec, "names": list(names)})


def load_classifier(folder: Path) -> Classifier | None:
    """The classifier of a run folder; None where it has none.

    Raises:
        UserError: Its files are damaged or do not fit.
    """
    if not (folder / "classifier.json").exists():
        return None
    try:
        spec = read_json(folder / "classifier.json", folder)
        dim, classes, layers, names = spec["dim"], spec["classes"], spec["layers"], tuple(spec["names"])
        file = folder / "classifier.safetensors"
        shapes = tensor_shapes(file, folder)
        if layers > len(shapes) or shapes_of(lambda: Classifier(dim, classes, layers), str(file)) != shapes:
            raise ValueError("classifier.json describes another one")
        classifier = Classifier(dim, classes, layers, names)
        with torch.no_grad():
            classifier.load_state_dict(read_tensors(file, folder))
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: the classifier is damaged ({type(error).__name__}: {reason})") from None
    return classifier
