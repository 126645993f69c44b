"""The parser of options, and the options that commands share. Torch-free."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NoReturn, get_args, get_origin

from jsonargparse import ArgumentParser, Namespace

from ssl_bench.config.constraints import PathText, checked
from ssl_bench.config.help import describe, help_text
from ssl_bench.config.options import WandbOptions
from ssl_bench.config.safe_yaml import refuse_costly
from ssl_bench.config.trainer_refusals import REFUSED
from ssl_bench.errors import UserError, near

MEANT = {  # what people type -> the option that does it
    "lr": "optim.base_lr",
    "optim.lr": "optim.base_lr",
    "learning_rate": "optim.base_lr",
    "wd": "optim.weight_decay",
    "optimizer": "optim.name",
    "epochs": "trainer.max_epochs",
    "trainer.epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "gpus": "trainer.devices",
    "device": "trainer.accelerator",
    "amp": "trainer.precision",
    "accumulate": "trainer.accumulate_grad_batches",
    "accum_iter": "trainer.accumulate_grad_batches",
    "batch_size": "data.batch_size",
    "bs": "data.batch_size",
    "workers": "data.num_workers",
    "data_path": "data.root",
    "data_dir": "data.root",
    "dataset": "data",
    "model": "backbone",
    "arch": "backbone",
    "network": "backbone",
    "output": "runs",
    "output_dir": "runs",
    "resume": "runs",
    "protocol": "protocols",
    "warmup": "optim.warmup_epochs",
}
MEANT_VALUES = {  # the same of values
    "fp16": "16-mixed",
    "16": "16-mixed",
    "half": "16-mixed",
    "float16": "16-mixed",
    "bf16": "bf16-mixed",
    "bfloat16": "bf16-mixed",
    "fp8": "bf16-mixed",
    "fp32": "32-true",
    "32": "32-true",
    "float32": "32-true",
    "64": "64-true",
    "adam": "adamw",
    "gpu": "cuda",
    "ddp_find_unused_parameters": "ddp_find_unused_parameters_true",
}


_raises = ContextVar("_raises", default=False)


@contextmanager
def errors_raised() -> Iterator[None]:
    """Within it, bad options raise `UserError` rather than end the process: what callers from Python expect."""
    token = _raises.set(True)
    try:
        yield
    finally:
        _raises.reset(token)


class Parser(ArgumentParser):  # type: ignore[misc]
    """jsonargparse's parser with messages of one line, values held to what their types say, and a help of one page.

    Args:
        origins: Option -> file or variable it was read from, for messages.
        usual: The options that `--help` shows.
        shown_groups: Prefixes of groups that it shows, too.
        examples: What it ends with.
    """

    origins: Mapping[str, str] = {}
    usual: Sequence[str] = ()
    shown_groups: Sequence[str] = ()
    examples: str = ""
    whole_help = False
    _tokens: Sequence[str] = ()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)  # an abbreviation is a typo waiting for a second option

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> Any:
        """jsonargparse's, without its option that reads a whole group from a file: `-c` does that."""
        added = super().add_class_arguments(*args, **kwargs)
        for action in [a for a in self._actions if type(a).__name__ == "_ActionConfigLoad"]:
            self._remove_action(action)
            for option in action.option_strings:
                del self._option_string_actions[option]
            for group in self._action_groups:
                if action in group._group_actions:
                    group._group_actions.remove(action)
        return added

    def parse_args(self, args: Sequence[str], **kwargs: Any) -> Namespace:  # type: ignore[override]
        """The options, each held to its type's constraints, with `~` of paths expanded."""
        self.whole_help = "--help-all" in args
        if self.whole_help:
            args = ["--help"]
        for token in args:
            refuse_costly(token, token.partition("=")[0] if token.startswith("--") else "the command line")
        self._tokens = [*args]
        namespace = super().parse_args([*args], **kwargs)
        for action in self._actions:
            annotation, name = getattr(action, "_typehint", None), action.dest
            if annotation is None or (value := namespace.get(name)) is None:
                continue
            try:
                namespace[name] = checked(annotation, value)
            except ValueError as error:
                between = ": " if isinstance(value, list | tuple) else " "
                self.refuse(name, f"--{name}: {_brief(value)}{between}{error}")
        return namespace

    def format_help(self, formatter: Any = None) -> str:
        return help_text(self, self.usual, self.whole_help, self.shown_groups, self.examples)

    def refuse(self, name: str, message: str) -> NoReturn:
        """Exit code 2 with one line, which says where the option was set if that was not a flag."""
        origin = f" (from {self.origins[name]})" if name in self.origins and len(self._values(name)) < 2 else ""
        if _raises.get():
            raise UserError(f"{message}{origin}".removesuffix(" (--help-all)"))
        self.exit(2, f"{self.prog}: error: {message}{origin}\n")
        raise AssertionError

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """One line with what was probably meant, exit code 2."""
        message = re.sub(r"\s+", " ", message).strip()
        unknown = re.search(
            r"(?:[Uu]nrecognized arguments: --?|[Oo]ption '|does not accept option ')([\w.-]+)", message
        )
        bad = re.search(r"(?:Parser key|argument) \"?-{0,2}([\w.-]+)(?:/--[\w-]+)?\"?: (.*)", message)
        if unknown:
            self.refuse(unknown[1], self._no_such(unknown[1]))
        if not bad:
            self.refuse("", message)
        name = bad[1]
        annotation = next((getattr(a, "_typehint", None) for a in self._actions if a.dest == name), None)
        values = self._values(name)
        value = re.search(r"Got value: (.*?)(?: Given value type|$)", bad[2])
        if annotation is None or not (value or values):
            self.refuse(name, f"--{name}: {bad[2][:200]}")
        choices = [str(c) for c in get_args(annotation)] if get_origin(annotation) is Literal else []
        given = values[0] if len(values) == 1 or not value else value[1].strip(" '\"")
        meant = MEANT_VALUES.get(given.lower())
        hint = f"; did you mean {meant!r}?" if meant in choices else near(given, choices)
        self.refuse(name, f"--{name}: {_brief(given)} must be {describe(annotation)}{hint}")

    def _values(self, name: str) -> list[str]:
        """Every value that an option is given: by a file or variable, then by flags."""
        tokens, flag = self._tokens, f"--{name}"
        joined = [token.partition("=")[2] for token in tokens if token.startswith(f"{flag}=")]
        return joined + [value for token, value in zip(tokens, tokens[1:], strict=False) if token == flag]

    def _no_such(self, name: str) -> str:
        """That there is no such option, and which one was probably meant."""
        options = [o.removeprefix("--") for a in self._actions for o in a.option_strings if o.startswith("--")]
        options += [short for short in ("method", "data", "backbone") if f"{short}.name" in options]
        plain = name.replace("-", "_").lower()
        if plain in REFUSED and any(option.startswith("trainer.") for option in options):
            return f"--{plain} is no option here: {REFUSED[plain]}"
        members = [option for option in options if option.startswith(f"{plain}.")]
        if members:
            return f"--{name} is a group of options, such as --{members[0]}; a file of options is given by -c FILE"
        same = [option for option in options if option.rpartition(".")[2] == plain.rpartition(".")[2]]
        meant = MEANT.get(plain)
        if meant in options:
            return f"no option --{name}; did you mean '{meant}'?"
        if len(same) == 1:
            return f"no option --{name}; did you mean {same[0]!r}?"
        return f"no option --{name}{near(name, options) or near(plain, options)} (--help-all)"


def _brief(value: Any) -> str:
    text = str(list(value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def common_arguments(parser: Parser) -> None:
    """What fit, evaluate and benchmark share."""
    parser.add_argument("-c", "--config", action="append", metavar="FILE", help="YAML of options; repeat to layer")
    parser.add_argument("--runs", type=PathText, default="runs", help="where run folders live")
    modes = ["off", "auto", "online", "offline"]
    parser.add_argument("--wandb", default="off", choices=modes, help="log to W&B as well")
    parser.add_argument("--wandb_project", default="ssl-bench", help="W&B project, or entity/project")
    parser.add_argument("--wandb_entity", type=str | None, help="W&B user or team; by default the key's own")
    parser.add_argument("--wandb_group", type=str | None, help="under which W&B shows runs together")
    parser.add_argument("--wandb_checkpoints", type=bool, default=False, help="weights and checkpoint as an artifact")
    parser.add_argument("--help-all", action="store_true", help="explain every option and stop")


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
