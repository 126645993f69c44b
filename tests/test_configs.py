"""Every shipped recipe goes through the real parser, and what it describes can be built."""

from pathlib import Path

import pytest

from ssl_bench import registry
from ssl_bench.configuration import parse_fit

FILES = sorted((registry.folder("configs") / "methods").rglob("*.yaml"))
BENCHMARKS = sorted((registry.folder("configs") / "benchmarks").rglob("*.yaml"))


def test_none_is_missing() -> None:
    assert len(FILES) >= 6  # as published, CIFAR-10, demo, for each method
    assert BENCHMARKS
    assert set(FILES + BENCHMARKS) == set(registry.folder("configs").rglob("*.yaml"))
    assert set(registry.names("methods")) <= {file.stem for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_parses_and_says_how_it_was_measured(file: Path) -> None:
    method = file.stem.partition("-")[0]
    parsed = parse_fit(["--method", method, "--recipe", file.stem], {})
    assert parsed.recipe == file.stem
    header = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any("ssl-bench" in line or "make demo" in line for line in header), "no command"
    assert any("easured" in line for line in header), "no measured number, nor that there is none"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_method_can_be_built(file: Path) -> None:
    from ssl_bench.backbone import Backbone
    from ssl_bench.options import BackboneOptions, Optim

    method = file.stem.partition("-")[0]
    config = parse_fit(["--method", method, "--recipe", file.stem], {}).config
    small = {"width": 48, "depth": 1, "num_heads": 3} if "vit" in config["backbone"]["name"] else {}
    backbone = Backbone(BackboneOptions(**{**config["backbone"], **small}))
    given = {k: v for k, v in config["method"].items() if k != "name"}
    cls = registry.load(registry.find("methods", method))
    assert cls(backbone=backbone, optim=Optim(**config["optim"]), **given).views()
