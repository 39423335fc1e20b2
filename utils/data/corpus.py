"""What `--corpus` of a recipe names: the mini corpus, a directory, or directories for training and test."""

from pathlib import Path

from utils.errors import UserError


def corpus_folders(corpus: str, accepted: str) -> list[Path]:
    """The directories that `--corpus DIR` or `--corpus TRAIN_DIR,TEST_DIR` names, absolute.

    Raises:
        UserError: one is not there; `accepted` lists the forms of a corpus.
    """
    names = [corpus] if Path(corpus).exists() else corpus.split(",")
    folders = [Path(name).expanduser().resolve() for name in names]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(
                f"--corpus: {folder} is not a directory. Give `mini`, or one of these forms:\n{accepted}"
            )
    return folders


def data_folder(corpus: str, out: Path, accepted: str) -> Path:
    """`out/mini`, `out/<name of the directory>` or `out/<train>-<test>`."""
    return out / (
        "mini" if corpus == "mini" else "-".join(f.name for f in corpus_folders(corpus, accepted))
    )
