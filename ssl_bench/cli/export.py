"""`ssl-bench export`."""

from ssl_bench.cli.commands import command_parser, import_torch, path
from ssl_bench.errors import UserError

FORMATS = ("timm", "hf", "torchscript", "onnx")


def main(argv: list[str]) -> int:
    parser = command_parser("export", "  ssl-bench export runs/mae-... -o exported")
    parser.add_argument("run", metavar="RUN", type=path, help="a finished or imported run's folder")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", type=path, help="the folder to make")
    formats = "timm (default), hf (transformers' AutoModel), torchscript, or onnx"
    parser.add_argument("--format", choices=FORMATS, default="timm", help=formats)
    parser.add_argument("--license", metavar="NAME", help="for the model card: apache-2.0, cc-by-nc-4.0, ...")
    parser.add_argument("--push-to-hub", metavar="ORG/NAME", help="upload the folder to the Hugging Face hub, too")
    parser.add_argument("--private", action="store_true", help="make a new repository there private")
    classes = "a class of yours that the network is of (my_package.net.Net): its code will run"
    parser.add_argument("--classes", default="", metavar="CLASS", help=classes)
    given = parser.parse_args(argv)
    from ssl_bench.checkpoints.export_paths import checked_paths
    from ssl_bench.checkpoints.hub import checked_name, push_to_hub
    from ssl_bench.config.class_paths import name_classes, names_in

    name_classes(*names_in(given.classes))
    if given.push_to_hub is not None:
        try:
            checked_name(given.push_to_hub)
        except ValueError as error:
            raise UserError(f"--push-to-hub {given.push_to_hub} {error}") from None
    checked_paths(given.run, given.output)
    import_torch()
    from ssl_bench.checkpoints.export import export

    export(given.run, given.output, given.format, given.license)
    if given.push_to_hub is not None:
        print(push_to_hub(given.output, given.push_to_hub, given.private))
    print(given.output)
    return 0
