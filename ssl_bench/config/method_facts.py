"""What a method's file says of the method: its kind, its paper's year, the networks it takes. Torch-free.

`kind` and `families` are attributes of the class and are read from the source, which need not be imported for it; the
year is the first one in the docstring's second paragraph, where the paper is named.
"""

import ast
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ssl_bench.config.registry import Found, source_of

MethodKind = Literal[
    "contrastive",
    "self-distillation",
    "clustering",
    "redundancy reduction",
    "masked image modelling",
    "joint-embedding prediction",
    "tokenizer",
    "later stage",
    "other",
]
Family = Literal["ViT", "BEiT", "Swin", "ResNet", "other"]
KINDS: tuple[MethodKind, ...] = get_args(MethodKind)
FAMILIES: tuple[Family, ...] = get_args(Family)


@dataclass(frozen=True)
class MethodFacts:
    """Facts of one method.

    Args:
        kind: What keeps its representations apart; other, where its class does not say.
        year: Of its paper; None where the file names none.
        families: Networks that it takes with its own options.
    """

    kind: MethodKind = "other"
    year: int | None = None
    families: tuple[Family, ...] = FAMILIES


def method_facts(found: Found) -> MethodFacts:
    """Facts from a method's source."""
    source = source_of(found.module)
    if source is None:
        return MethodFacts()
    tree = ast.parse(source.read_text(encoding="utf-8"))
    said = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == found.class_name), None)
    values: dict[str, Any] = {}
    for node in said.body if said is not None else ():
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id in ("kind", "families"):
                values[target.id] = ast.literal_eval(node.value)
    paragraphs = (ast.get_docstring(tree) or "").split("\n\n")
    year = re.search(r"\b(?:19|20)\d\d\b", paragraphs[1]) if len(paragraphs) > 1 else None
    return MethodFacts(**values, year=int(year.group()) if year else None)
