"""`ssl-bench import`."""

import argparse

from ssl_bench.cli.commands import import_torch, path, refuse, typed
from ssl_bench.config.constraints import ImageSize, PositiveInt
from ssl_bench.errors import UserError


def main(argv: list[str]) -> int:
    from ssl_bench.checkpoints.import_options import Import
    from ssl_bench.checkpoints.official.layout import FORMATS

    parser = argparse.ArgumentParser(
        "ssl-bench import",
        usage="ssl-bench import FILE --format FORMAT -o RUN [--OPTION VALUE ...] [--method.OPTION VALUE ...]",
        description="Make a run folder of an official checkpoint, whole or encoder only. Files are read as data:"
        " nothing in them is run. The last line of standard output is the folder.",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", type=path, help=".pth, .safetensors, or a folder that timm can load")
    parser.add_argument("--format", required=True, help=" | ".join(FORMATS))
    parser.add_argument("-o", "--output", required=True, metavar="RUN", type=path, help="the run folder to make")
    parser.add_argument("--backbone", metavar="NAME", help="for --format timm: timm's name of the network")
    parser.add_argument(
        "--heads", type=typed(PositiveInt), metavar="N", help="attention heads, where the file does not say"
    )
    parser.add_argument(
        "--img-size", type=typed(ImageSize), metavar="N", help="pixels of the input, where the file does not say"
    )
    parser.add_argument("--encoder-only", action="store_true", help="leave what only pretraining needs")
    chosen = "model, ema, student or teacher, where a file holds several"
    parser.add_argument("--weights", choices=("model", "ema", "student", "teacher"), help=chosen)
    offset = "how positions are resampled at other sizes: DINO's 0.1, or 0 (default: as the format's code)"
    parser.add_argument("--interpolate-offset", type=float, metavar="X", help=offset)
    smooth = "whether they are smoothed when there are fewer: true or false (default: as the format's code)"
    parser.add_argument("--interpolate-antialias", type=str.lower, choices=("true", "false"), help=smooth)
    parser.add_argument("--data", default="unknown", metavar="TITLE", help="what it was pretrained on, for the record")
    parser.add_argument("--verbose", action="store_true", help="list every name, not one of each reason")
    parser.error = refuse(parser)  # type: ignore[method-assign]
    method: dict[str, str] = {}
    queue, rest = list(argv), list[str]()
    while queue:
        token = queue.pop(0)
        option, equals, value = token.partition("=")
        if not option.startswith("--method."):
            rest.append(token)
        elif not (equals or queue):
            raise UserError(f"{option} needs a value")
        else:
            method[option.removeprefix("--method.")] = value if equals else queue.pop(0)
    given = parser.parse_args(rest)
    if given.interpolate_offset is not None and not 0 <= given.interpolate_offset < 1:
        raise UserError(f"--interpolate-offset {given.interpolate_offset} must lie between 0 and 1")
    if given.interpolate_antialias is not None:
        given.interpolate_antialias = given.interpolate_antialias == "true"
    own = {name: value for name, value in vars(given).items() if name not in ("output", "verbose")}
    asked = Import(out=given.output, method=method, command=tuple(argv), **own)
    asked.checked()
    import_torch()
    from ssl_bench.checkpoints.import_checkpoint import import_checkpoint

    imported = import_checkpoint(asked)
    print(f"{given.file}: {imported.kind}; {imported.network}")
    if imported.weights:
        print(f"weights: {imported.weights}")
    if imported.positions:
        print(f"positions at other sizes: {imported.positions}")
    for line in imported.report.lines(given.verbose):
        print(line)
    if imported.again:
        print(f"to continue it: {imported.again}")
    print(given.output)
    return 0
