"""What `ssl-bench import` is asked for. Torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ssl_bench.checkpoints.official.layout import Layout, layout
from ssl_bench.errors import UserError

WEIGHTS = ("model", "teacher", "student", "ema")  # in this order, where several networks are in a file


@dataclass(frozen=True)
class Import:
    """A parsed `import` command.

    Args:
        file: The checkpoint; for the format timm also a folder with config.json.
        format: Whose layout.
        out: The run folder that is made.
        backbone: timm's name of the network, for the format timm.
        heads: Attention heads of the encoder.
        img_size: Pixels of its input.
        encoder_only: Leave what only pretraining needs.
        method: Options of the method, text.
        data: Title of what it was pretrained on.
        command: Arguments that do this again.
        weights: Which, where a file holds several: model, ema, student or teacher.
        interpolate_offset: How positions are resampled at other sizes, where the file's network does it otherwise than
            its format says.
        interpolate_antialias: Likewise.
    """

    file: Path
    format: str
    out: Path
    backbone: str | None = None
    heads: int | None = None
    img_size: int | None = None
    encoder_only: bool = False
    method: Mapping[str, str] = field(default_factory=dict)
    data: str = "unknown"
    command: tuple[str, ...] = ()
    weights: str | None = None
    interpolate_offset: float | None = None
    interpolate_antialias: bool | None = None

    def checked(self) -> Layout:
        """The layout that was asked for.

        Raises:
            UserError: There is none of the name, an option is not for it, or a path is wrong.
        """
        known = layout(self.format)
        if self.out.exists():
            raise UserError(f"-o {self.out} exists: name a folder that does not")
        if self.backbone and self.format != "timm":
            raise UserError(f"--backbone is for --format timm: a checkpoint of {known.title} says which network it is")
        if self.weights not in (None, *WEIGHTS):
            raise UserError(f"--weights {self.weights}: one of {', '.join(WEIGHTS)}")
        if not self.file.exists():
            raise UserError(f"no file {self.file}")
        return known
