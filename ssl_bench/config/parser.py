"""The parser of options, and the options that commands share. Torch-free."""

import re
from collections.abc import Mapping
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from ssl_bench.config.options import WandbOptions
from ssl_bench.errors import UserError, near


class Parser(ArgumentParser):  # type: ignore[misc]
    """jsonargparse's parser with messages of one line.

    Args:
        origins: Option -> file or variable it was read from, for messages.
    """

    origins: Mapping[str, str] = {}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)  # an abbreviation is a typo waiting for a second option

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """One line with the nearest known option, exit code 2."""
        options = [o.removeprefix("--") for a in self._actions for o in a.option_strings if o.startswith("--")]
        message = re.sub(r"\s+", " ", message).strip()
        unknown = re.search(r"(?:[Uu]nrecognized arguments: --|[Oo]ption '|does not accept option ')([\w.-]+)", message)
        bad = re.search(r"(?:Parser key|argument) \"?-{0,2}([\w.]+)\"?: (.*)", message)
        if unknown:
            name = unknown[1]
            message = f"no option --{name}{near(name, options)}"
        elif bad:
            name = bad[1]
            message = f"--{name}: {_short(bad[2])}"
        else:
            name = ""
        origin = f" (from {self.origins[name]})" if name in self.origins else ""
        self.exit(2, f"{self.prog}: error: {message}{origin}\n")
        raise AssertionError


def _short(message: str) -> str:
    """A type error of jsonargparse without its inner path."""
    message = re.sub(r"(?:Problem with given (?:class_path|value).*?:\s*)|(?:Does not validate.*?:\s*)", "", message)
    return message.partition(" Given value type")[0][:200]


def common_arguments(parser: Parser) -> None:
    """What fit, evaluate and benchmark share."""
    parser.add_argument("-c", "--config", action="append", metavar="FILE", help="YAML of options; repeat to layer")
    parser.add_argument("--runs", default="runs", help="where run folders live")
    modes = ["off", "auto", "online", "offline"]
    parser.add_argument("--wandb", default="off", choices=modes, help="log to W&B as well")
    parser.add_argument("--wandb_project", default="ssl-bench", help="W&B project, or entity/project")
    parser.add_argument("--wandb_entity", type=str | None, help="W&B user or team; by default the key's own")
    parser.add_argument("--wandb_group", type=str | None, help="under which W&B shows runs together")
    parser.add_argument("--wandb_checkpoints", type=bool, default=False, help="weights and checkpoint as an artifact")


def wandb_options(namespace: Namespace) -> WandbOptions:
    """The W&B options among the parsed ones.

    Raises:
        UserError: The project is named in a way that W&B does not know.
    """
    entity, slash, project = namespace.wandb_project.rpartition("/")
    if not project or "/" in entity or (slash and not entity):
        raise UserError(f"--wandb_project {namespace.wandb_project}: PROJECT, or ENTITY/PROJECT")
    if entity and namespace.wandb_entity not in (None, entity):
        raise UserError(
            f"--wandb_project {namespace.wandb_project} and --wandb_entity {namespace.wandb_entity} name two owners: "
            "give one of them"
        )
    owner = namespace.wandb_entity or entity or None
    return WandbOptions(namespace.wandb, project, owner, namespace.wandb_group, namespace.wandb_checkpoints)
