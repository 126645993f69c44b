"""The `evaluate` command line: protocols by name, presets of the user's own, and what they may be called."""

from pathlib import Path

import pytest

from ssl_bench.config import registry
from ssl_bench.errors import UserError
from ssl_bench.evaluation.evaluate_config import parse_evaluate

PRESET = "evaluation: {name: labels, fraction: 0.05, cs: [0.1, 1]}"


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def protocols(*argv: str) -> dict[str, dict[str, object]]:
    return parse_evaluate(["pixels", "--data=digits", *argv], {}).protocols


def test_a_preset_of_the_users_is_a_protocol_of_its_own(tmp_path: Path) -> None:
    file = write(tmp_path / "labels-5pct.yaml", PRESET)
    given = protocols(f"--protocols={file},knn", "--labels_5pct.draws=2")
    assert list(given) == ["labels-5pct", "knn"]
    assert given["labels-5pct"] | {"fraction": 0.05, "cs": (0.1, 1.0), "draws": 2, "seed": 0} == given["labels-5pct"]


def test_files_flags_and_the_environment_are_above_a_preset(tmp_path: Path) -> None:
    own = write(tmp_path / "own.yaml", "{protocols: [labels-1pct, ridge], labels_1pct: {fraction: 0.02, draws: 5}}")
    argv = ["pixels", "-c", own, "--labels_1pct.draws", "4"]
    assert list(parse_evaluate(argv, {}).protocols) == ["labels-1pct", "ridge"]
    given = parse_evaluate(argv, {"SSL_BENCH_LABELS_1PCT__FOLDS": "3"}).protocols["labels-1pct"]
    assert (given["fraction"], given["draws"], given["folds"]) == (0.02, 4, 3)


def test_all_has_presets_in_their_evaluations_place() -> None:
    given = protocols("--protocols=all")
    assert {"knn", "labels-1pct", "finetune-10pct"} < set(given) and not {"labels", "finetune-labels"} & set(given)
    assert protocols("--protocols=labels", "--labels.fraction=0.2")["labels"]["fraction"] == 0.2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("mine.yaml", "evaluation: {name: lables}", "no evaluation 'lables'; did you mean 'labels'?"),
        ("mine.yaml", "evaluation: {fraction: 0.1}", "mine.yaml is no preset"),
        ("mine.yaml", "evaluation: labels", "mine.yaml is no preset"),
        ("mine.yaml", "{evaluation: {name: labels}, data: {name: digits}}", "mine.yaml is no preset"),
        ("mine.yaml", "evaluation: {name: labels-1pct}", "labels-1pct is a preset itself"),
        ("knn.yaml", PRESET, "there is an evaluation knn already"),
        ("labels-1pct.yaml", PRESET, "there is an evaluation labels-1pct already"),
        ("my labels.yaml", PRESET, "letters, digits"),
        ("labels@5.yaml", PRESET, "letters, digits"),
    ],
)
def test_what_is_no_preset(name: str, text: str, message: str, tmp_path: Path) -> None:
    file = write(tmp_path / name, text)
    with pytest.raises(UserError) as error:
        protocols(f"--protocols={file}")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("fraction: some", "--mine.fraction: some must be a number"),
        ("fractoin: 0.1", "no option --mine.fractoin; did you mean 'mine.fraction'?"),
    ],
)
def test_a_presets_options_are_checked_and_its_file_named(
    options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "mine.yaml", f"evaluation: {{name: labels, {options}}}")
    with pytest.raises(SystemExit):
        protocols(f"--protocols={file}")
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and line.endswith(f" (from {file})")


def test_help_says_a_presets_values(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        protocols("--protocols=finetune-1pct", "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "default 0.01" in shown and "default 200" in shown


def test_two_presets_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    files = [write(tmp_path / "mine.yaml", PRESET), write(tmp_path / "a" / "mine.yml", PRESET)]
    with pytest.raises(UserError, match="are both called mine"):
        protocols(f"--protocols={','.join(files)}")
    assert list(protocols(f"--protocols={files[0]},{files[0]}")) == ["mine"]


def test_presets_are_listed_and_explained() -> None:
    names = registry.names("evaluations")
    assert list(names) == sorted(names)
    assert registry.summary(names["labels-1pct"]).startswith("Labels 1 %: logistic regression")
    assert all(registry.summary(found) for found in names.values())
