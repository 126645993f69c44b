"""Layers of options, their precedence, and what a wrong one says."""

from pathlib import Path

import pytest

from ssl_bench.config.fit_config import dump, parse_fit
from ssl_bench.errors import UserError
from ssl_bench.records.run_folder import identity, run_folder

TINY = ["--method", "mae", "--recipe", "mae"]


def parse(*flags: str, env: dict[str, str] | None = None) -> dict:
    return parse_fit(flags, env or {}).config


def test_signature_below_recipe_below_environment_below_files_below_flags(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("optim: {base_lr: 3, weight_decay: 3, warmup_epochs: 3}\n")
    second.write_text("optim: {base_lr: 4, weight_decay: 4}\n")
    env = {"SSL_BENCH_OPTIM__BASE_LR": "2", "SSL_BENCH_OPTIM__WARMUP_EPOCHS": "2", "SSL_BENCH_OPTIM__MIN_LR": "2"}
    # the flag stands before the files and still wins
    config = parse("--optim.base_lr", "5", "-c", str(first), *TINY, "-c", str(second), env=env)
    assert config["optim"]["base_lr"] == 5  # flag
    assert config["optim"]["weight_decay"] == 4  # second file
    assert config["optim"]["warmup_epochs"] == 3  # first file
    assert config["optim"]["min_lr"] == 2  # environment
    assert config["data"]["batch_size"] == 64  # recipe
    assert config["optim"]["betas"] == [0.9, 0.95]  # signature of MAE, not of AdamW


def test_print_config_reproduces_itself(tmp_path: Path) -> None:
    config = parse(*TINY, "--method.mask_ratio=0.6", "--data", "cifar10", "--backbone", "vit_tiny_patch16_224")
    file = tmp_path / "config.yaml"
    file.write_text(dump(config))
    again = parse("-c", str(file))
    assert again == config
    assert identity(again) == identity(config)


def test_another_backbone_drops_what_earlier_layers_said_of_theirs(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("backbone: {name: vit_small_patch16_224, depth: 3, drop_path: 0.2}\n")
    other = parse(*TINY, "-c", str(file), "--backbone", "vit_tiny_patch16_224", "--backbone.num_heads", "6")["backbone"]
    assert (other["depth"], other["drop_path"], other["num_heads"]) == (None, 0.0, 6)
    assert parse(*TINY, "-c", str(file), "--backbone", "vit_small_patch16_224")["backbone"]["depth"] == 3


def test_method_in_a_file_is_enough(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("method: {name: simclr, temperature: 0.5}\n")
    assert parse("-c", str(file))["method"]["temperature"] == 0.5


def test_run_folder_is_the_identity() -> None:
    config = parse(*TINY, "--seed", "3")
    folder = run_folder(Path("runs"), config)
    assert folder.name == f"mae-folder-vit_base_patch16_224-s3-{identity(config)}"
    assert identity(parse(*TINY, "--seed", "3", "--data.num_workers", "7")) == identity(config)
    assert identity(parse(*TINY, "--seed", "4")) != identity(config)
    assert identity(parse(*TINY, "--seed", "3", "--method.mask_ratio", "0.7")) != identity(config)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method.mask_ratoi", "0.5"], "no option --method.mask_ratoi; did you mean 'method.mask_ratio'?"),
        (["--method.mask_ratio", "much"], "--method.mask_ratio: "),
        (["--method.temperature", "0.2"], "no option --method.temperature"),
        (["--optim.name", "adm"], "--optim.name: "),
        (["--trainer.max_epochs", "1.5"], "--trainer.max_epochs: "),
        (["--trainer.max_epoch", "1"], "did you mean 'trainer.max_epochs'?"),
        (["--optim.lr", "1"], "did you mean 'optim.base_lr'?"),
        (["--lr", "1"], "did you mean 'optim.base_lr'?"),
        (["--epochs", "1"], "did you mean 'trainer.max_epochs'?"),
        (["--batch_size", "1"], "did you mean 'data.batch_size'?"),
        (["--batch-size", "1"], "did you mean 'data.batch_size'?"),
        (["--mask_ratio", "0.5"], "did you mean 'method.mask_ratio'?"),
        (
            ["--optim", "my.yaml"],
            "--optim is a group of options, such as --optim.name; a file of options is given by -c",
        ),
        (["--trainer.precision", "fp16"], "did you mean '16-mixed'?"),
        (["--trainer.precision=bf16"], "did you mean 'bf16-mixed'?"),
        (["--trainer.devices", "0"], "--trainer.devices: 0 must be auto, a number from 1, or a list such as 0,2"),
        (["--seed", "5e9"], "--seed: 5e9 must be a whole number from 0 to 4294967295"),
        (["--backbone.drop_path", "2"], "--backbone.drop_path: 2.0 must be at least 0, below 1"),
        (["--optim.betas", "[0.9,1.5]"], "--optim.betas: [0.9, 1.5]: 1.5 must be at least 0, below 1"),
        (["--trainer.limit_train_batches", "0"], "must be at least 1, or above 0, at most 1"),
    ],
)
def test_a_bad_flag_is_one_line_and_exit_code_2(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(*TINY, *flags)
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in said
    assert said.count("\n") == 1


def test_a_bad_key_in_a_file_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("optim: {bse_lr: 1}\n")
    with pytest.raises(SystemExit):
        parse(*TINY, "-c", str(file))
    said = capsys.readouterr().err
    assert "did you mean 'optim.base_lr'?" in said
    assert str(file) in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "mea"], "no method 'mea'; did you mean 'mae'?"),
        (["--method", "no_such_package.module.Class"], "no module 'no_such_package.module'"),
        (["--method", "mae", "--recipe", "mea"], "no recipe 'mea'; did you mean 'mae'?"),
        (["--method", "mae", "-c", "missing.yaml"], "no file missing.yaml"),
        (["--method"], "--method needs a value"),
    ],
)
def test_unknown_names(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=".*") as error:
        parse(*flags)
    assert message in str(error.value)


@pytest.mark.parametrize(("option", "value"), [("min_lr", "1"), ("warmup_lr", "0.5")])
def test_a_rate_is_no_lower_than_its_floors(option: str, value: str) -> None:
    with pytest.raises(UserError, match=f"--optim.{option} {value} is above --optim.base_lr 0.00015: lower it"):
        parse(*TINY, f"--optim.{option}", value)
    assert parse(*TINY, "--optim.min_lr=1", "--optim.schedule=steps_simmim")  # which has no floor


def test_a_value_out_of_range_names_the_file_it_came_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("optim: {clip: -2}\n")
    read = ["-c", str(file)]
    for flags, origin in ((read, f" (from {file})\n"), ([*read, "--optim.clip=0"], " 0.0 must be above 0\n")):
        with pytest.raises(SystemExit):
            parse(*TINY, *flags)
        assert capsys.readouterr().err.endswith(origin)
    with pytest.raises(SystemExit):
        parse(*TINY, env={"SSL_BENCH_OPTIM__CLIP": "-1"})
    assert capsys.readouterr().err.endswith("--optim.clip: -1.0 must be above 0 (from the environment)\n")


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "1: 2\n", "just text"])
def test_a_file_that_is_no_mapping(text: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml"):
        parse(*TINY, "-c", str(file))


def test_no_method_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse()
    assert stop.value.code == 2
    assert "mae" in capsys.readouterr().err


def test_a_folders_name_does_not_choose_a_recipe(tmp_path: Path) -> None:
    for name in ("finetune", "cifar10", "digits-canvas"):
        argv = ["--method", "simclrv2", "--data", "folder", "--data.root", str(tmp_path / name)]
        assert parse_fit(argv, {}).recipe == "simclrv2"
