"""Every option that is a path: `~` is the home folder, and what is no path on this machine is refused by name."""

from pathlib import Path

import pytest

from ssl_bench.cli.main import main
from ssl_bench.config.constraints import local_path
from ssl_bench.config.fit_config import parse_fit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.evaluate_config import parse_evaluate

ADDRESSES = ["s3://bucket/x", "gs://bucket/x", "hf://a/b", "http://host/x", "file:///x", "FILE:/x", "a::b", "s3:/b/x"]
OPTIONS = {
    "--runs": lambda parsed: str(parsed.runs),
    "--init": lambda parsed: parsed.config["init"],
    "--data.root": lambda parsed: parsed.config["data"]["root"],
    "--method.tokenizer": lambda parsed: parsed.config["method"]["tokenizer"],
}
NOBODY = "~nobody-of-this-name/x"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home folder, which is the working folder, too."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("option", OPTIONS)
def test_home_in_flags_files_and_variables(option: str, home: Path) -> None:
    name, of = option.removeprefix("--"), OPTIONS[option]
    group, _, inner = name.rpartition(".")
    (home / "my.yaml").write_text(f"{group}: {{{inner}: ~/x}}\n" if group else f"{name}: ~/x\n")
    variable = f"SSL_BENCH_{name.upper().replace('.', '__')}"
    for argv, environ in (
        ([f"{option}=~/x"], {}),
        ([option, "~/x"], {}),
        (["-c", "~/my.yaml"], {}),
        ([], {variable: "~/x"}),
    ):
        assert of(parse_fit(["--method", "cae", *argv], environ)) == str(home / "x")


@pytest.mark.parametrize("value", [*ADDRESSES, NOBODY])
@pytest.mark.parametrize("option", OPTIONS)
def test_what_is_no_path_here_is_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_fit(["--method", "cae", f"{option}={value}"], {})
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert f"{option}: {value} " in said, said


@pytest.mark.parametrize(
    "argv",
    [
        ["leaderboard", "--runs=X"],
        ["leaderboard", "X"],
        ["leaderboard", "--output=X"],
        ["leaderboard", "--published=X"],
        ["compare", "X"],
        ["figures", "X"],
        ["figures", "run", "--data.root=X"],
        ["export", "X", "-o", "y"],
        ["export", "x", "-o", "X"],
        ["import", "X", "--format", "mae", "-o", "y"],
        ["import", "x", "--format", "mae", "-o", "X"],
        ["evaluate", "X"],
        ["evaluate", "random:X"],
        ["evaluate", "pixels", "--runs=X"],
        ["evaluate", "pixels", "--data.root=X"],
        ["evaluate", "pixels", "--protocols=finetune-1pct", "--finetune_1pct.subset=X"],
        ["evaluate", "-c", "X"],
        ["fit", "-c", "X"],
        ["benchmark", "--runs=X"],
        ["benchmark", "-c", "X"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("value", ["s3://bucket/x", NOBODY])
def test_in_every_command(argv: list[str], value: str, capsys: pytest.CaptureFixture[str], home: Path) -> None:
    assert main([part.replace("X", value) for part in argv]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and value in said[0] and said[0].startswith("ssl-bench")
    assert "address" in said[0] or "user" in said[0]
    assert not list(home.iterdir())


def test_home_of_targets(home: Path) -> None:
    (home / "run").mkdir()
    with pytest.raises(UserError, match=f"{home}/run is no run folder"):
        parse_evaluate(["~/run"], {})
    with pytest.raises(UserError, match=f"{home}/run is no run folder"):
        parse_evaluate([str(home / "run")], {})
    (target,) = parse_evaluate([f"random:{home}/run"], {}).targets  # a network's name may hold anything
    assert target.backbone == {"name": f"{home}/run"}
    assert parse_evaluate(["random:~/run"], {}).targets[0].backbone == target.backbone


def test_a_path_that_only_looks_unusual_is_taken() -> None:
    for path in ("runs", "./~x", "a:b", "C:file", "x/s3://", "random:x", "a b/ü"):
        assert local_path(path) == path
