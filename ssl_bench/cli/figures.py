"""`ssl-bench figures`."""

import os
from typing import Any, cast

from ssl_bench.cli.commands import command_parser, import_torch, path, typed
from ssl_bench.config import class_paths
from ssl_bench.config.constraints import Device, PositiveInt
from ssl_bench.figures.figures_config import Figures
from ssl_bench.records.store import find_runs

EXAMPLES = """\
  ssl-bench figures runs/mae-...                      all pictures that make sense for this run
  ssl-bench figures runs --only attention,map         these of all runs
  ssl-bench figures runs/mae-official --data cifar10  an imported run has no images of its own"""


def main(argv: list[str]) -> int:
    from ssl_bench.config.layers import environment_layer
    from ssl_bench.config.parser import wandb_options
    from ssl_bench.data.files.location import located

    parser = command_parser("figures", EXAMPLES)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=path, help="run folders, or folders of them")
    parser.add_argument("--only", metavar="NAME,...", help="some of the pictures (default: all that make sense)")
    parser.add_argument(
        "--images", type=typed(PositiveInt), default=8, metavar="N", help="images in each picture (default: 8)"
    )
    parser.add_argument("--data", metavar="NAME|PATH", help="other images than the run's own; an imported run has none")
    parser.add_argument(
        "--data.root", dest="root", type=path, metavar="DIR", help="where the images are on this machine"
    )
    devices = "auto, cpu, cuda, cuda:1, mps (default: auto)"
    parser.add_argument("--device", type=typed(Device), default="auto", metavar="NAME", help=devices)
    classes = "classes of yours that the runs' configurations name (package.module.Class), with commas"
    parser.add_argument("--classes", default="", metavar="CLASS,...", help=f"{classes}: their code will run")
    parser.add_argument("--force", action="store_true", help="draw again what is current")
    modes = ["off", "auto", "online", "offline"]
    wandb_help = "send them to the run's own W&B run (default: off)"
    parser.add_argument("--wandb", default="off", choices=modes, metavar="|".join(modes), help=wandb_help)
    project_help = "W&B project, or entity/project (default: ssl-bench)"
    parser.add_argument("--wandb_project", default="ssl-bench", metavar="NAME", help=project_help)
    parser.add_argument("--wandb_entity", metavar="NAME", help="W&B user or team (default: the key's own)")
    parser.add_argument("--wandb_group", metavar="NAME", help="under which W&B shows runs together")
    checkpoints_help = "upload weights and checkpoint as an artifact (default: false)"
    parser.add_argument(
        "--wandb_checkpoints",
        type=str.lower,
        choices=["true", "false"],
        default="false",
        metavar="true|false",
        help=checkpoints_help,
    )
    known = environment_layer(os.environ)
    given = parser.parse_args([*(f"--{name}={known[name]}" for name in known if name.startswith("wandb")), *argv])
    given.wandb_checkpoints = given.wandb_checkpoints == "true"
    wandb = wandb_options(cast(Any, given))
    only = list(class_paths.names_in(given.only)) if given.only is not None else None
    root = str(given.root) if given.root is not None else None
    chosen = located({"data.name": given.data, "data.root": root})
    data = {key.removeprefix("data."): value for key, value in chosen.items() if value is not None}
    named = class_paths.names_in(given.classes)
    class_paths.name_classes(*named)
    figures = Figures(given.runs, only, given.images, data, given.device, given.force, named)
    find_runs(given.runs)  # which refuses wrong paths before torch is loaded
    import_torch()
    from ssl_bench.figures.write import write_figures
    from ssl_bench.tracking.wandb_results import logged

    for folder in write_figures(figures):
        with logged(folder.parent, wandb):  # all that the run folder holds by now
            pass
        print(folder, flush=True)
    return 0
