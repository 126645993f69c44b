"""Files of options that would hang, fill the memory or run code are refused by one line, at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from ssl_bench.config.fit_config import parse_fit
from ssl_bench.config.layers import read_yaml
from ssl_bench.errors import UserError

LEVELS = 30
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, LEVELS)
)
COSTLY = {
    "aliases of aliases": (BOMB, "aliases"),
    "merged aliases": (BOMB + "b: {<<: *a29}\n", "aliases"),
    "deep": ("a: " + "[" * 20_000 + "]" * 20_000, "levels deep"),
    "deep by indentation": ("".join(f"{' ' * n}a:\n" for n in range(500)), "levels deep"),
    "inside itself": ("a: &a [*a]\n", "inside of what it names"),
    "a mapping inside itself": ("a: &a {b: *a}\n", "inside of what it names"),
    "huge": ("a: " + "x" * (1 << 20), "larger than"),
    "many values": ("a: [" + "1," * 30_000 + "]", "more than 20,000 values"),
    "long number": ("seed: " + "9" * 10_000, "not YAML"),
    "no such date": ("a: 2026-13-45\n", "not YAML"),
    "alias of nothing": ("a: *b\n", "not YAML"),
    "unhashable key": ("{[a]: {{b: c}: d}}\n", "not YAML"),
    "null byte": ("a: \0\n", "not YAML"),
}
CODE = [
    "!!python/object/apply:os.system ['touch executed']",
    "!!python/object/new:subprocess.Popen [['touch', 'executed']]",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/tuple [1, 2]",
    "!mine {a: 1}",
]


@pytest.mark.integration
@pytest.mark.parametrize("kind", COSTLY)
def test_a_costly_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    text, message = COSTLY[kind]
    (tmp_path / "bad.yaml").write_text(text)
    code = (
        "import resource, sys, time\nfrom pathlib import Path\nfrom ssl_bench.config.layers import read_yaml\n"
        "from ssl_bench.errors import UserError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (500 << 20, 500 << 20))\nbegin = time.process_time()\n"
        "try:\n    read_yaml(Path('bad.yaml'))\nexcept UserError as error:\n    print(error)\n"
        "assert time.process_time() - begin < 1, time.process_time() - begin"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, timeout=60)
    said = run.stdout.decode()
    assert run.returncode == 0, run.stderr.decode()
    assert "bad.yaml" in said and message in said and said.count("\n") == 1, said


@pytest.mark.parametrize("tag", CODE)
def test_no_tag_runs_code(tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(f"method: mae\nbackbone:\n  timm_args: {tag}\n")
    with pytest.raises(UserError, match="bad.yaml is not YAML, line 3: .* would run code"):
        parse_fit(["-c", "bad.yaml"], {})
    with pytest.raises(SystemExit):
        parse_fit(["--method", "mae", f"--backbone.timm_args={tag}"], {})
    with pytest.raises(SystemExit):
        parse_fit(["--method", "mae"], {"SSL_BENCH_BACKBONE__TIMM_ARGS": tag})
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("text", [COSTLY["aliases of aliases"][0], "[" * 20_000, "&a [*a]", "9" * 5000])
def test_a_flag_and_a_variable_are_refused_alike(text: str) -> None:
    value = "{" + text.strip().replace("\n", ", ") + "}" if text.startswith("a0") else text
    for argv, environ in (
        (["--method", "mae", f"--backbone.timm_args={value}"], {}),
        (["--method", "mae", "--backbone.timm_args", value], {}),
        (["--method", "mae"], {"SSL_BENCH_BACKBONE__TIMM_ARGS": value}),
    ):
        with pytest.raises(UserError) as error:
            parse_fit(argv, environ)
        assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_what_is_no_plain_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for file, kind in ((tmp_path / "pipe.yaml", "a pipe"), (tmp_path / "folder.yaml", "a folder")):
        with pytest.raises(UserError, match=f"{file.name} is {kind}: options are read from plain files"):
            read_yaml(file)
    with pytest.raises(UserError, match="is a device"):
        read_yaml(Path("/dev/zero"))
    with pytest.raises(UserError, match="cannot read"):
        (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\xfe\n")
        read_yaml(tmp_path / "bytes.yaml")


def test_anchors_and_merges_within_reason_are_read(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n")
    assert read_yaml(tmp_path / "good.yaml") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}, {"x": 1}]}


def test_an_empty_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A full disk leaves such files."""
    file = tmp_path / "config.yaml"
    file.write_text("\n")
    assert read_yaml(file) == {} and capsys.readouterr().err == f"warning: {file} is empty\n"
    file.write_text("# nothing yet\n")
    assert read_yaml(file) == {} and capsys.readouterr().err == ""
