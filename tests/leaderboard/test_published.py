"""Published numbers: beside ours, with their source, in no rank; mistakes in the file are named."""

import json
import os
from pathlib import Path

import pytest
from recorded_runs import Runs

from ssl_bench.errors import UserError
from ssl_bench.leaderboard.render import FORMATS, leaderboard

HEAD = "method,data,backbone,protocol,value,source\n"


@pytest.fixture
def two(runs: Runs) -> Runs:
    runs.add_seeds("mae", {"linear": 0.6})
    runs.add_seeds("simclr", {"linear": 0.5})
    return runs


def test_csv_and_yaml_say_the_same(two: Runs, tmp_path: Path) -> None:
    table, listed = tmp_path / "numbers.csv", tmp_path / "numbers.yaml"
    table.write_text(HEAD + "MoCo v3,cifar10,vit_nano_patch4_32,linear,91.5,A. Author 2021\n")
    entry = {"method": "MoCo v3", "data": "cifar10", "backbone": "vit_nano_patch4_32", "protocol": "linear"}
    listed.write_text(json.dumps([entry | {"value": 91.5, "source": "A. Author 2021"}]))
    for format in FORMATS:
        text = leaderboard([two.root], format, published=table)
        assert text == leaderboard([two.root], format, published=listed)
        assert "MoCo v3" in text and "A. Author 2021" in text
        assert "91.5" in text or "0.915" in text
    model = json.loads(leaderboard([two.root], "json", published=table))
    assert model["blocks"][0]["published"] == [{"name": "MoCo v3", "source": "A. Author 2021", "values": [0.915]}]
    assert [row["name"] for row in model["blocks"][0]["rows"] if row["cells"][0]["best"]] == ["mae"]
    assert 'class="published"' in leaderboard([two.root], "html", published=table)


def test_one_that_fits_nowhere_is_a_note(two: Runs, tmp_path: Path) -> None:
    file = tmp_path / "numbers.csv"
    file.write_text(HEAD + "MoCo,imagenet,,linear,76.7,B\nMoCo,cifar10,resnet18,linear,9,B\nMoCo,cifar10,,knn,9,B\n")
    text = " ".join(leaderboard([two.root], published=file).split())
    assert text.count("fits no block") == 3 and "MoCo (published)" not in text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("MoCo,cifar10,,linear,high,B", "entry 1: value 'high' is no accuracy in %"),
        ("MoCo,cifar10,,linear,101,B", "entry 1: value '101' is no accuracy in %"),
        ("MoCo,cifar10,,linear,nan,B", "entry 1: value 'nan' is no accuracy in %"),
        ("MoCo,cifar10,,linear,9,", "entry 1 has no source"),
        ("MoCo,cifar10", "entry 1 has no protocol"),
    ],
)
def test_mistakes_are_named(two: Runs, tmp_path: Path, line: str, words: str) -> None:
    file = tmp_path / "numbers.csv"
    file.write_text(HEAD + line + "\n")
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        leaderboard([two.root], published=file)


def test_files_that_are_none(two: Runs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere.csv cannot be read"):
        leaderboard([two.root], published=tmp_path / "nowhere.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UserError, match="pipe.csv cannot be read .it is a FIFO"):
        leaderboard([two.root], published=tmp_path / "pipe.csv")  # for which nothing waits
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("{a: [")
    with pytest.raises(UserError, match="is not YAML"):
        leaderboard([two.root], published=wrong)
    wrong.write_text("method: MoCo")
    with pytest.raises(UserError, match="must be a list"):
        leaderboard([two.root], published=wrong)
    other = tmp_path / "other.csv"
    other.write_text("metod,data,backbone,protocol,value,source\na,b,,c,1,d\n")
    with pytest.raises(UserError, match="has 'metod'; did you mean 'method'"):
        leaderboard([two.root], published=other)
