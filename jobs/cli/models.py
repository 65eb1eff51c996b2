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
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="The folder of the model, TinyMU's checkpoint, or a GGUF file.")
    ],
    to: Annotated[Path, typer.Argument(metavar="NEW", help="The folder to write; it must not exist.")],
    base: Annotated[
        str | None, typer.Option(help="The model that a LoRA adapter belongs to, if not the one that it names.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The tokenizer.json of TinyMU's language model, SmolLM2.")
    ] = None,
) -> None:
    """Write a model in the layout that every command reads: transformers' layout with safetensors.

    Converts `pytorch_model.bin` (read without running code from it), a tokenizer that is a SentencePiece model alone,
    a LoRA adapter of peft (merged into its base model), an audiocraft release, and the published checkpoint of TinyMU
    (a `.pt` file), whose folder a recipe can name as `understand.teacher.model` or `understand.encoder.model`, and a
    GGUF file of a Llama, for `understand.language_model.model`.

    Examples:
    - `tmctl models convert my-lora my-model --base facebook/musicgen-small`

    - `tmctl models convert tinymu.pt tinymu --tokenizer smollm2/tokenizer.json`

    - `tmctl models convert SmolLM2-135M-Instruct.Q4_1.gguf smollm2`
    """
    from tinymusician.errors import ModelError

    if to.exists():
        raise ModelError(f"{to}: exists; give the path of a new folder")
    _check_options(source, base, tokenizer)
    if source.suffix.lower() in (".pt", ".pth"):
        _convert_tinymu(source, to, tokenizer)
    elif source.suffix.lower() == ".gguf" and not source.is_dir():
        _convert_gguf(source, to)
    elif source.is_dir():
        _convert_folder(source, to, base)
    else:
        raise ModelError(f"model {str(source)!r}: no such folder")


def _check_options(source: Path, base: str | None, tokenizer: Path | None) -> None:
    """Check that the source uses the options that are given.

    Raises:
        ModelError: it does not.
    """
    from tinymusician.errors import ModelError

    if tokenizer is not None and source.suffix.lower() not in (".pt", ".pth"):
        raise ModelError(
            f"--tokenizer {tokenizer}: is for TinyMU's checkpoint (.pt) alone; {source} brings its tokenizer"
        )
    if base is not None and not source.is_dir():
        raise ModelError(f"--base {base}: is for the folder of a LoRA adapter alone")


def _convert_folder(source: Path, to: Path, base: str | None) -> None:
    from tinymusician.artifacts.atomic import new_folder
    from tinymusician.models.checkpoint_files import check_checkpoint, model_type
    from tinymusician.models.convert import convert_checkpoint

    with new_folder(to) as draft:
        done = convert_checkpoint(source, draft, base)
        kind = model_type(draft)
        if kind == "musicgen":
            check_checkpoint(draft, str(source))
    print("\n".join([*done, f"{to}: a {kind} in transformers' layout"]))


def _convert_gguf(file: Path, to: Path) -> None:
    from tinymusician.artifacts.atomic import new_folder
    from tinymusician.models.gguf import convert_gguf

    with new_folder(to) as draft:
        count = convert_gguf(file, draft)
    print(f"{to}: a Llama in transformers' layout, {count:,} parameters")


def _convert_tinymu(checkpoint: Path, to: Path, tokenizer: Path | None) -> None:
    """Write the model of a published checkpoint of TinyMU.

    Raises:
        ModelError: it cannot be read, or the tokenizer is missing.
    """
    from tokenizers import Tokenizer

    from tinymusician.artifacts.atomic import new_folder
    from tinymusician.errors import ModelError, first_line
    from tinymusician.models.audio_lm_files import load_tinymu, save_audio_lm

    if tokenizer is None:
        raise ModelError(f"{checkpoint}: has no tokenizer in it; give SmolLM2's tokenizer.json with --tokenizer")
    try:
        words = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # the library raises no narrower one
        raise ModelError(f"--tokenizer {tokenizer}: cannot be read ({first_line(error)})") from error
    model = load_tinymu(checkpoint)
    with new_folder(to) as draft:
        save_audio_lm(draft, model, words.to_str())
    print(f"{to}: a model that answers questions, {sum(value.numel() for value in model.parameters()):,} parameters")


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
