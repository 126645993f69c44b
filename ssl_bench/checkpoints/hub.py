"""Upload of an exported folder to the Hugging Face hub, or to one that HF_ENDPOINT names."""

import re
from pathlib import Path

from ssl_bench.errors import UserError


def push_to_hub(folder: Path, name: str, private: bool = False) -> str:
    """Upload a folder as a model; makes the repository if there is none.

    Args:
        folder: As `export` wrote it.
        name: ORG/NAME.
        private: Whether a new repository is.

    Returns:
        Where it can be seen.

    Raises:
        UserError: The hub refuses it, or cannot be reached; the folder stays.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by ssl-bench")
    except Exception as error:  # of the library's, of its transport's, of the hub's
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"--push-to-hub {name}: {reason}; {folder} is written; hf auth login, or HF_TOKEN") from None
    return f"{api.endpoint}/{name}"


def checked_name(name: str) -> str:
    """ORG/NAME.

    Raises:
        ValueError: It is none.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]{1,96}", name):
        raise ValueError("must be ORG/NAME")
    return name
