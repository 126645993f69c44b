"""A class path in a file has no code run: only one that the user names, ours, or an installed plug-in's."""

import sys
from pathlib import Path

import pytest
from figure_runs import config as figure_config

from ssl_bench.benchmark.plan import plan
from ssl_bench.cli.main import main
from ssl_bench.config.class_paths import is_class_path
from ssl_bench.config.fit_config import parse_fit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.evaluate_config import parse_evaluate

PAYLOAD = """
from pathlib import Path

Path({ran!r}).touch()

from ssl_bench.config.options import Optim


class Method:
    def __init__(self, backbone, optim: Optim = Optim()) -> None: ...
"""


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there once a module of the received folder was run; the working folder is importable."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    marker = tmp_path / "ran"
    received = tmp_path / "runs" / "received"
    received.mkdir(parents=True)
    for file in (received / "payload.py", received / "__init__.py", tmp_path / "runs" / "__init__.py"):
        file.write_text(PAYLOAD.format(ran=str(marker)))
    yield marker  # type: ignore[misc]
    for name in [name for name in sys.modules if name == "runs" or name.startswith("runs.")]:
        del sys.modules[name]


def test_a_configuration_names_a_method(ran: Path) -> None:
    file = Path("runs/received/config.yaml")
    for text in ("method: runs.received.payload.Method\n", "method: {name: runs.received.payload.Method}\n"):
        file.write_text(text)
        with pytest.raises(UserError, match="names the class runs.received.payload.Method, and a file alone has no"):
            parse_fit(["-c", str(file)], {})
        assert main(["fit", "-c", str(file)]) == 2 and not ran.exists()
        with pytest.raises(UserError, match="names the class"):
            parse_fit(["--recipe", str(file), "--method.name", "mae", "-c", str(file)][:2] + ["-c", str(file)], {})
    assert not ran.exists()
    chosen = parse_fit(["-c", str(file), "--method", "runs.received.payload.Method"], {}).config
    assert chosen["method"]["name"] == "runs.received.payload.Method" and ran.exists()  # the user named it


def test_a_recipe_names_a_method(ran: Path) -> None:
    Path("recipe.yaml").write_text("method: runs.received.payload.Method\n")
    with pytest.raises(UserError):
        parse_fit(["--method", "mae", "--recipe", "recipe.yaml", "-c", "recipe.yaml"][3:], {})
    assert not ran.exists()


def test_a_configuration_names_a_tokenizer(ran: Path) -> None:
    Path("cae.yaml").write_text("method: {name: cae, tokenizer: 'runs.received.payload:Method'}\n")
    with pytest.raises(UserError, match="--method.tokenizer runs.received.payload:Method"):
        parse_fit(["-c", "cae.yaml"], {})
    assert parse_fit(["-c", "cae.yaml", "--method.tokenizer", "pixels"], {}).config["method"]["tokenizer"] == "pixels"
    named = parse_fit(["-c", "cae.yaml", "--method.tokenizer", "runs.received.payload:Method"], {}).config
    assert named["method"]["tokenizer"] == "runs.received.payload:Method"
    assert not ran.exists()


def test_a_file_names_a_protocol(ran: Path) -> None:
    Path("evaluate.yaml").write_text("protocols: knn,runs.received.payload.Method\n")
    with pytest.raises(UserError, match="--protocols runs.received.payload.Method"):
        parse_evaluate(["pixels", "-c", "evaluate.yaml"], {})
    assert not ran.exists()


def test_a_benchmark_names_a_method_or_a_protocol(ran: Path) -> None:
    own = "runs.received.payload.Method"
    for tree in (
        {"methods": [own], "data": ["digits"]},
        {"methods": [{"name": "mae", "then": [own]}], "data": ["digits"]},
        {"methods": ["mae"], "data": ["digits"], "axes": {"method.name": ["mae", own]}},
        {"methods": ["mae"], "data": ["digits"], "fit": {"method": {"name": own}}},
        {"methods": [{"name": "cae", "method": {"tokenizer": "runs.received.payload:Method"}}], "data": ["digits"]},
        {"methods": ["dino"], "data": ["digits"], "evaluate": {"protocols": [own]}},
    ):
        with pytest.raises(UserError):
            plan(tree, Path("runs"))
        assert not ran.exists(), tree


@pytest.mark.integration
def test_drawing_a_received_run(ran: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its pictures are drawn without its method, or not at all."""
    from ssl_bench.pretraining.training import fit
    from ssl_bench.records.files import write_text

    folder = fit(figure_config("mae"), Path("runs")).folder
    name = "runs.received.payload.Method"
    text = (folder / "config.yaml").read_text()
    write_text(folder / "config.yaml", text.replace("name: mae", f"name: {name}"))
    record = (folder / "run.json").read_text()
    write_text(folder / "run.json", record.replace('"method": "mae"', f'"method": "{name}"'))
    main(["figures", str(folder), "--only", "reconstruction,attention,masks", "--images", "2", "--device", "cpu"])
    assert "names the class" in capsys.readouterr().err and not ran.exists()
    for command in (["leaderboard", "runs"], ["evaluate", str(folder), "--protocols", "knn", "--device", "cpu"]):
        main(command)
    main(["export", str(folder), "-o", "out"])
    assert not ran.exists()


def test_what_is_a_class_path(tmp_path: Path) -> None:
    assert not is_class_path("method.name", "mae") and is_class_path("method.name", "a.b.C")
    assert is_class_path("method.tokenizer", "a.b:C") and not is_class_path("method.tokenizer", "pixels")
    assert not is_class_path("method.tokenizer", str(tmp_path))
