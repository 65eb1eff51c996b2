"""`tmctl models`: models from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Convert models that were saved in another layout, and check models before they are used.",
)
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of the model.")]


@app.command()
def convert(
    source: Folder,
    to: Annotated[Path, typer.Argument(metavar="NEW", help="The folder to write; it must not exist.")],
    base: Annotated[
        str | None, typer.Option(help="The model that a LoRA adapter belongs to, if not the one that it names.")
    ] = None,
) -> None:
    """Write a model in the layout that every command reads: transformers' layout with safetensors.

    Converts `pytorch_model.bin` (read without running code from it), a tokenizer that is a SentencePiece model alone,
    a LoRA adapter of peft (merged into its base model), and an audiocraft release.

    Example: `tmctl models convert my-lora my-model --base facebook/musicgen-small`
    """
    from tinymusician.artifacts.atomic import new_folder
    from tinymusician.errors import ModelError
    from tinymusician.models.checkpoint_files import check_checkpoint, model_type
    from tinymusician.models.convert import convert_checkpoint

    if not source.is_dir():
        raise ModelError(f"model {str(source)!r}: no such folder")
    if to.exists():
        raise ModelError(f"{to}: exists; give the path of a new folder")
    with new_folder(to) as draft:
        done = convert_checkpoint(source, draft, base)
        kind = model_type(draft)
        if kind == "musicgen":
            check_checkpoint(draft, str(source))
    for line in done:
        print(line)
    print(f"{to}: a {kind} in transformers' layout")


@app.command()
def check(folder: Folder) -> None:
    """Check by its files that a model can be trained on and generate: kind, tokenizer, every tensor's name and shape.

    `tmctl submit … --dry-run` does the same. Example: `tmctl models check ./musicgen-small`
    """
    from tinymusician.errors import ModelError
    from tinymusician.models.checkpoint_files import check_checkpoint

    if not folder.is_dir():
        raise ModelError(f"model {str(folder)!r}: no such folder")
    check_checkpoint(folder)
    print(f"{folder}: complete")
