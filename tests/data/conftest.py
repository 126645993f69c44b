"""Small data sets on disk, made by the tests that read them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import picture


@pytest.fixture
def class_folders(tmp_path: Path) -> Callable[..., Path]:
    """Write `count` pictures of a size for each `split/class` folder; returns the root."""

    def write(folders: Sequence[str], count: int = 4, width: int = 40, height: int = 30, kind: str = "png") -> Path:
        root = tmp_path / "own pictures"
        for number, folder in enumerate(folders):
            (root / folder).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                picture(100 * number + index, width, height).save(root / folder / f"{index:03d}.{kind}")
        return root

    return write


@pytest.fixture
def parquet_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a parquet file in Hugging Face's image layout; returns its path."""

    def write(
        name: str,
        contents: Sequence[bytes | None],
        labels: Sequence[int] | None,
        names: Sequence[str] | None = None,
        image: str = "image",
        label: str = "label",
        paths: Sequence[str] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> Path:
        file = tmp_path / "shards" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        rows = [{"bytes": b, "path": paths[i] if paths else None} for i, b in enumerate(contents)]
        columns: dict[str, Any] = {image: pa.array(rows, kind), **(extra or {})}
        if labels is not None:
            columns[label] = pa.array(labels, pa.int64())
        table = pa.table(columns)
        if names is not None:
            features = {label: {"names": list(names), "_type": "ClassLabel"}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, file)
        return file

    return write
