"""What a method's file says of it, without importing it."""

import subprocess
import sys
from pathlib import Path

import pytest

from ssl_bench.cli.list import methods_by_kind
from ssl_bench.config import registry
from ssl_bench.config.method_facts import FAMILIES, KINDS, MethodFacts, method_facts
from ssl_bench.config.registry import Found


def test_a_plug_in_may_say_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "silent_method.py").write_text("class Silent:\n    pass\n", encoding="utf-8")
    said = (
        '"""Spoken: a method.\n\nSomeone, "A Paper", ICML 2031.\n"""\n\nclass Spoken:\n    kind: str = "clustering"\n'
    )
    (tmp_path / "spoken_method.py").write_text(said + '    families = ("ViT",)\n', encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    silent = method_facts(Found("silent", "silent_method", "Silent"))
    assert silent == MethodFacts() == MethodFacts("other", None, FAMILIES)
    spoken = method_facts(Found("spoken", "spoken_method", "Spoken"))
    assert spoken == MethodFacts("clustering", 2031, ("ViT",))
    assert not {"silent_method", "spoken_method"} & sys.modules.keys()


def test_the_list_has_every_method_once_under_its_kind() -> None:
    lines = list(methods_by_kind())
    kinds = [line.removesuffix(":") for line in lines if not line.startswith(" ")]
    assert kinds == [kind for kind in KINDS if kind in kinds] and len(kinds) >= 6
    names = [line.split()[0] for line in lines if line.startswith(" ")]
    assert sorted(names) == sorted(registry.names("methods"))
    years = {line.split()[0]: line.split()[1] for line in lines if line.startswith(" ")}
    assert (years["mae"], years["swav"], years["lejepa"]) == ("2022", "2020", "2025")


@pytest.mark.integration
def test_listing_loads_no_torch() -> None:
    code = "import sys; from ssl_bench.cli.list import main; main(['methods']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
