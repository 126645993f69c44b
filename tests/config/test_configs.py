"""Every shipped recipe goes through the real parser, and what it describes can be built."""

import inspect
from pathlib import Path

import pytest

from ssl_bench.config import registry
from ssl_bench.config.fit_config import parse_fit

CONTINUE = registry.folder("configs") / "methods" / "continue.yaml"  # of no method: over the recipe of any
FILES = sorted(set((registry.folder("configs") / "methods").rglob("*.yaml")) - {CONTINUE})
EVALUATIONS = sorted((registry.folder("configs") / "evaluations").rglob("*.yaml"))
BENCHMARKS = sorted((registry.folder("configs") / "benchmarks").rglob("*.yaml"))
STUDIES = sorted((registry.folder("configs") / "studies").rglob("*.yaml"))
SUITES = sorted((registry.folder("configs") / "suites").rglob("*.yaml"))  # tests/config/test_suites.py parses them


def method_of(file: Path) -> str:
    """`simclrv2-finetune` of simclrv2-finetune-cifar10.yaml: the longest name that the file's begins with."""
    return max((name for name in registry.names("methods") if f"{file.stem}-".startswith(f"{name}-")), key=len)


def test_none_is_missing() -> None:
    assert len(FILES) >= 6  # as published, CIFAR-10, demo, for each method
    assert BENCHMARKS
    shipped = {CONTINUE, *FILES, *EVALUATIONS, *BENCHMARKS, *STUDIES, *SUITES}
    assert shipped == set(registry.folder("configs").rglob("*.yaml"))
    assert set(registry.names("methods")) <= {file.stem for file in FILES}


def test_a_study_for_a_laptop_has_a_full_sized_twin() -> None:
    names = {file.stem for file in STUDIES}
    small = {name for name in names if not name.endswith("-imagenet")}
    assert len(small) == 7 and names == small | {f"{name}-imagenet" for name in small}


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_a_study_says_how_to_run_it(file: Path) -> None:
    header = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any(f"ssl-bench benchmark -c {file.stem}" in line for line in header)
    assert any("easured" in line for line in header), "no measured number, nor that there is none"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_says_how_it_was_measured(file: Path) -> None:
    header = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any("ssl-bench" in line or "make demo" in line for line in header), "no command"
    assert any("easured" in line for line in header), "no measured number, nor that there is none"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.integration
def test_it_parses_and_its_method_can_be_built(file: Path, tmp_path: Path) -> None:
    from ssl_bench.config.options import BackboneOptions, Optim
    from ssl_bench.models.backbone import Backbone
    from ssl_bench.models.classifier import Classifier, save_classifier
    from ssl_bench.models.saved_backbone import write_backbone

    method = method_of(file)
    parsed = parse_fit(["--method", method, "--recipe", file.stem], {})
    assert parsed.recipe == file.stem
    config = parsed.config
    given = {k: v for k, v in config["method"].items() if k != "name"}
    if "tokenizer" in given:
        given["tokenizer"] = "pixels"  # published ones are files of others
    if "backbone" in config:
        name = config["backbone"]["name"]
        small = {"width": 48, "depth": 1, "num_heads": 3} if "vit" in name or "beit" in name else {}
        small |= {"width": 48} if "swin" in name else {}
        if name.startswith("resnet"):
            small |= {"timm_args": {**(config["backbone"]["timm_args"] or {}), "layers": [1, 1, 1, 1]}}
        given["backbone"] = Backbone(BackboneOptions(**{**config["backbone"], **small}))
    cls = registry.load(registry.find("methods", method))
    if "classes" in inspect.signature(cls).parameters:
        given["classes"] = 10
    if "teacher" in given:  # a run of the user's
        write_backbone(tmp_path, given["backbone"], (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        save_classifier(tmp_path, Classifier(given["backbone"].dim, 2), ("a", "b"))
        given["teacher"] = str(tmp_path)
    assert cls(optim=Optim(**config["optim"]), **given).views()


@pytest.mark.parametrize("file", EVALUATIONS, ids=lambda file: file.stem)
def test_a_preset_of_an_evaluation_can_be_built(file: Path) -> None:
    found = registry.find("evaluations", file.stem)
    assert found == registry.find("evaluations", str(file)) and found.preset == file, "by its file, too"
    made = registry.load(found)(**registry.preset_options(found))
    assert registry.preset_options(found).items() <= made.options().items()
    assert file.read_text().startswith("# ") and registry.summary(found) in file.read_text()


def test_presets_are_counted() -> None:
    assert len(EVALUATIONS) == 4
