"""A checkpoint's tensors by their names here. Every name is loaded, renamed or left with a reason."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ssl_bench.checkpoints.checkpoint_file import CheckpointFile
from ssl_bench.checkpoints.official.layout import Kind, matching
from ssl_bench.checkpoints.recognition import Match
from ssl_bench.checkpoints.report import Report
from ssl_bench.errors import UserError


def renamed(match: Match, file: CheckpointFile, report: Report, only: str | None) -> dict[str, Tensor]:
    """Tensors by their names here.

    Args:
        match: What the file is.
        file: The checkpoint.
        report: Filled.
        only: Names here that are wanted begin with this; all if None.

    Raises:
        UserError: A name that nothing explains, or values that are no numbers.
    """
    state: dict[str, Tensor] = {}
    unexplained = []
    kind = match.kind
    for full, tensor in file.tensors.items():
        if not full.startswith(match.prefix):
            inner = full.startswith(match.others) if match.others else False
            report.unused[full] = "another network: --weights chooses" if inner else f"outside of {match.prefix}*"
            continue
        name = full.removeprefix(match.prefix)
        twin = re.sub(kind.tied[0], kind.tied[1], name) if re.fullmatch(kind.tied[0], name) else None
        rule = matching(kind.rules, name)
        if twin is not None and _equal(tensor, file.tensors.get(match.prefix + twin)):
            report.unused[full] = "stored a second time: shared with another"
        elif rule is None:
            unexplained.append(full)
        elif rule.refused:
            raise UserError(f"{file.path}: {full}: {rule.reason}")
        elif not rule.to:
            report.unused[full] = rule.reason
        else:
            new = re.fullmatch(rule.pattern, name).expand(rule.to)  # type: ignore[union-attr]
            if only is not None and not new.startswith(only):
                report.unused[full] = "of pretraining alone: the encoder was asked for"
            elif tensor.is_floating_point() and not tensor.isfinite().all():
                raise UserError(f"{file.path}: {full} holds values that are no numbers: its run had diverged")
            else:
                state[new] = tensor
                if new in (full, kind.evaluated + full):
                    report.loaded.append(full)
                else:
                    report.renamed[full] = new
    if unexplained:
        raise UserError(f"{file.path}: nothing explains {named(unexplained)}: is it of another version, or method?")
    return kind.prepare(state)


def complete(
    state: Mapping[str, Tensor], own: Mapping[str, tuple[int, ...]], kind: Kind, report: Report, file: Path
) -> dict[str, str]:
    """That a state has all that a module has, in its shapes, but for what its kind lacks: name -> name to start it as.

    Raises:
        UserError: It has more, less or others; the message says what.
    """
    if extra := [name for name in state if name not in own]:
        raise UserError(f"{file}: the network here has no {named(extra)}: is it of another version, or method?")
    started = {}
    for name in [name for name in own if name not in state]:
        rule = matching(kind.absent, name)
        if rule is not None:
            report.missing[name] = rule.reason
            source = re.fullmatch(rule.pattern, name).expand(rule.to) if rule.to else ""  # type: ignore[union-attr]
            started[name] = source if source in state else ""
    if missing := [name for name in own if name not in state and name not in started]:
        raise UserError(f"{file} lacks {named(missing)}: is it whole, and of this method?")
    for name, tensor in state.items():
        if _without_ones(tuple(tensor.shape)) != _without_ones(own[name]):
            shapes = f"{tuple(tensor.shape)} in {file}, {own[name]} here"
            raise UserError(f"{name} is {shapes}: do --heads, --img-size, --backbone or --method options fit?")
    return started


def fill(module: nn.Module, state: Mapping[str, Tensor], started: Mapping[str, str]) -> None:
    """Load a complete state; what it lacks starts as another of its tensors, or stays as it is."""
    own = module.state_dict()
    whole = {name: tensor.reshape(own[name].shape) for name, tensor in state.items()}
    whole |= {name: state[source].reshape(own[name].shape) if source else own[name] for name, source in started.items()}
    with torch.no_grad():
        module.load_state_dict(whole)


def named(names: list[str], most: int = 8) -> str:
    """Some of many names."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _equal(tensor: Tensor, other: Tensor | None) -> bool:
    return other is not None and torch.equal(tensor, other)


def _without_ones(shape: tuple[int, ...]) -> list[int]:
    return [size for size in shape if size != 1]
