"""`tmctl submit`: one command per kind of job."""

from __future__ import annotations

from json import dumps
from typing import Annotated

import typer

from jobs.cli.submission import SubmitOptions, submit_and_follow

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Submit a job to the Ray cluster and follow it.\n\n"
    "Ctrl-C stops following, not the job; `tmctl stop RUN` stops the job.",
)

RecipeName = Annotated[str, typer.Argument(help="A packaged recipe's name (`tmctl recipes`) or a YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value, e.g. training.steps=50.")
]
Cluster = Annotated[str | None, typer.Option(help="The Ray dashboard's address, e.g. http://HEAD:8265.")]
Workers = Annotated[
    int | None, typer.Option(min=1, show_default="1", help="Workers, on the device that training.device says.")
]
Gpus = Annotated[
    int | None,
    typer.Option(
        min=1, show_default=False, help="Workers with a GPU each; a cluster that scales from zero brings them."
    ),
]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job until it ends.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Validate everything, print the resolved recipe, and start nothing.")
]
On = Annotated[
    str | None,
    typer.Option(
        metavar="DEVICES",
        help="With --dry-run: time, bytes and memory on such devices: here, h100, h100x8 (in one machine), h100x8x2.",
        show_default=False,
    ),
]
Resume = Annotated[str | None, typer.Option(metavar="RUN", help="Continue this run from its last checkpoint.")]
Name = Annotated[str | None, typer.Option(help="The run's name; by default recipe, kind and time.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@app.command()
def distill(
    recipe: RecipeName,
    overrides: Overrides = None,
    cluster: Cluster = None,
    workers: Workers = None,
    gpus: Gpus = None,
    wait: Wait = True,
    dry_run: DryRun = False,
    on: On = None,
    resume: Resume = None,
    name: Name = None,
    json: Json = False,
) -> None:
    """Distil a teacher into a small student, and store the student as an artifact.

    The teacher samples music for the recipe's prompts. The student then learns the teacher's distribution over codes
    on these samples. Later runs reuse the samples from the store.

    Examples:
    - `tmctl submit distill band`

    - `tmctl submit distill band --set objective.skew=0.2 --set training.steps=100 --workers 2`

    - `tmctl submit distill band --resume band-distill-20260101-120000-ab12`

    - `tmctl submit distill tinymusician --dry-run --on h100x8`

    - `tmctl submit distill tinymusician --gpus 8 --set signals.source=actors --set signals.actors=4`

    - `tmctl submit distill band --set teacher.target=guided --set 'teacher.guidance_range=[1, 5]'`
    """
    options = SubmitOptions(recipe, overrides, cluster, workers, gpus, wait, dry_run, resume, name, json, on)
    submit_and_follow("distill", options)


@app.command()
def precompute(
    recipe: RecipeName,
    overrides: Overrides = None,
    cluster: Cluster = None,
    workers: Workers = None,
    gpus: Gpus = None,
    wait: Wait = True,
    dry_run: DryRun = False,
    resume: Resume = None,
    name: Name = None,
    json: Json = False,
) -> None:
    """Compute a teacher's samples and logits once, and store them in shards.

    `tmctl submit distill --set signals.source=cached` then needs no teacher on its GPUs. Shards that the store has are
    not computed again, whichever run computed them.

    Example: `tmctl submit precompute band --workers 2`
    """
    options = SubmitOptions(recipe, overrides, cluster, workers, gpus, wait, dry_run, resume, name, json)
    submit_and_follow("precompute", options)


@app.command()
def pretrain(
    recipe: RecipeName,
    overrides: Overrides = None,
    cluster: Cluster = None,
    workers: Workers = None,
    gpus: Gpus = None,
    wait: Wait = True,
    dry_run: DryRun = False,
    resume: Resume = None,
    name: Name = None,
    json: Json = False,
) -> None:
    """Train the house band from scratch: render its corpus, train codec, language models, CLAP and tagger.

    Takes hours on two cores; `--resume` continues an interrupted run. The packaged weights were made by this command.

    Example: `tmctl submit pretrain band --no-wait`
    """
    options = SubmitOptions(recipe, overrides, cluster, workers, gpus, wait, dry_run, resume, name, json)
    submit_and_follow("pretrain", options)


@app.command()
def understand(
    recipe: RecipeName,
    overrides: Overrides = None,
    cluster: Cluster = None,
    workers: Workers = None,
    gpus: Gpus = None,
    wait: Wait = True,
    dry_run: DryRun = False,
    resume: Resume = None,
    name: Name = None,
    json: Json = False,
) -> None:
    """Train a small model that answers questions about music, and score it against controls without audio.

    The stages are pretrain (the audio encoder), generate-questions, train (projector and language model) and benchmark.
    The artifact has the model, its tokenizer and all questions; `--resume` continues an interrupted run.

    Examples:
    - `tmctl submit understand band-mu --no-wait`

    - `tmctl submit understand band-mu --set understand.train.steps=200 --set understand.questions.train_clips=2000`
    """
    options = SubmitOptions(recipe, overrides, cluster, workers, gpus, wait, dry_run, resume, name, json)
    submit_and_follow("understand", options)


@app.command()
def quantize(
    recipe: RecipeName,
    model: Annotated[
        str | None,
        typer.Option(metavar="REF|DIR", help="The model to compress.", show_default="the recipe's newest student"),
    ] = None,
    overrides: Overrides = None,
    cluster: Cluster = None,
    workers: Workers = None,
    gpus: Gpus = None,
    wait: Wait = True,
    dry_run: DryRun = False,
    resume: Resume = None,
    name: Name = None,
    json: Json = False,
) -> None:
    """Compress a model into a bundle of ONNX graphs, which `tmctl generate`, phones and browsers play.

    The job compares the graphs with PyTorch, measures how sensitive each group of weights is to low precision, and
    stores the smallest bundle within the recipe's KL budget, with a report. Measurements are cached in the store.

    Examples:
    - `tmctl submit quantize band`

    - `tmctl submit quantize band --model band-large --set quantize.kl_budget=0.05`

    - `tmctl submit quantize band --model ./student --set quantize.plan=paper`
    """
    options = SubmitOptions(recipe, overrides, cluster, workers, gpus, wait, dry_run, resume, name, json)
    submit_and_follow("quantize", options, [f"quantize.model={model}"] if model else [])


# Long: its parameters are the options of the command.
@app.command()
def evaluate(
    recipe: RecipeName = "band",
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REF|DIR",
            help="A model to evaluate; can be given several times: a student, bundle, folder, hub id, `teacher` or "
            "`untrained`. `NAME=REF` names it in the report.",
            show_default="the recipe's newest student, without --audio",
        ),
    ] = None,
    audio: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR",
            help="A folder of audio files to evaluate; can be given several times. `NAME=DIR` names it in the report.",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|NPZ",
            help="The real clips: a folder of audio, for models with captions (NAME.wav, NAME.txt), or statistics that "
            "`tmctl runs reference` saved.",
            show_default="the recipe's",
        ),
    ] = None,
    first: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STEP",
            help="The first step to run: generate, embed, aggregate or render. Earlier steps are read from the store.",
            show_default="generate",
        ),
    ] = None,
    overrides: Overrides = None,
    cluster: Cluster = None,
    workers: Workers = None,
    gpus: Gpus = None,
    wait: Wait = True,
    dry_run: DryRun = False,
    resume: Resume = None,
    name: Name = None,
    json: Json = False,
) -> None:
    """Evaluate models and folders of audio against real clips: quality and cost, with confidence intervals.

    Models generate clips for the captions of the real ones, or for evaluate.prompts; folders are scored as they are.
    Measures FAD, KAD and CLAP score of both, and of models also label divergence, agreement with the teacher, time and
    memory; writes an HTML report with audio. The first model or folder is the one that the others are compared with.
    The steps are generate, embed, aggregate and render; clips and embeddings are cached in the store.

    Examples:
    - `tmctl submit evaluate band --model "before=untrained" --model band --model band-bundle`

    - `tmctl submit evaluate --audio ./mine --audio "other=./theirs" --reference ./recordings`

    - `tmctl submit evaluate band --resume RUN --from render`

    - `tmctl submit evaluate tinymusician --set evaluate.reference.kind=musiccaps
      --set evaluate.reference.table=musiccaps-public.csv --set evaluate.reference.audio=./musiccaps`
    """
    options = SubmitOptions(recipe, overrides, cluster, workers, gpus, wait, dry_run, resume, name, json)
    sets = [f"evaluate.{name}={dumps(value)}" for name, value in (("models", model), ("audio", audio)) if value]
    if reference is not None:
        is_file = reference.lower().endswith(".npz")
        source = {"kind": "statistics", "file": reference} if is_file else {"kind": "folder", "audio": reference}
        sets.append(f"evaluate.reference={dumps(source)}")
    submit_and_follow("evaluate", options, sets + ([f"evaluate.first={first}"] if first else []))


@app.command()
def sweep(
    recipe: RecipeName,
    over: Annotated[
        list[str] | None,
        typer.Option(
            help="What to vary; can be given several times: objectives, temperature, skew, switch.",
            show_default="all four",
        ),
    ] = None,
    overrides: Overrides = None,
    cluster: Cluster = None,
    workers: Workers = None,
    gpus: Gpus = None,
    wait: Wait = True,
    dry_run: DryRun = False,
    resume: Resume = None,
    name: Name = None,
    json: Json = False,
) -> None:
    """Train students that differ in one setting each, and compare them by the same metrics.

    `--over objectives` reproduces the paper's figures 2 and 3: six objectives with three seeds each. The report shows
    losses, their fluctuation, forward and reverse KL on test prompts, and the quality of the generated music. A
    training that the store has is not repeated.

    Examples:
    - `tmctl submit sweep band --over objectives --workers 2 --set training.steps=60`

    - `tmctl submit sweep tinymusician --over skew --over switch --gpus 8`
    """
    options = SubmitOptions(recipe, overrides, cluster, workers, gpus, wait, dry_run, resume, name, json)
    submit_and_follow("sweep", options, [f"sweep.over={dumps(over)}"] if over else [])


@app.command()
def pipeline(
    recipe: RecipeName,
    first: Annotated[
        str | None, typer.Option("--from", metavar="STEP", help="The first step; the steps before it must be done.")
    ] = None,
    last: Annotated[str | None, typer.Option("--until", metavar="STEP", help="The last step.")] = None,
    overrides: Overrides = None,
    cluster: Cluster = None,
    workers: Workers = None,
    gpus: Gpus = None,
    wait: Wait = True,
    dry_run: DryRun = False,
    resume: Resume = None,
    name: Name = None,
    json: Json = False,
) -> None:
    """Run precompute, distill, quantize, evaluate and publish as one run.

    A step whose inputs are unchanged is skipped; an interrupted step continues. The publish step signs the bundle as
    the newest release of the recipe's alias (`candidate`); `tmctl signing-keys create` makes the key for it once.
    `tmctl artifacts promote` moves `stable` to it if it passes the recipe's gates.

    Examples:
    - `tmctl submit pipeline band --workers 2`

    - `tmctl submit pipeline band --until evaluate --set quantize.kl_budget=0.05`
    """
    options = SubmitOptions(recipe, overrides, cluster, workers, gpus, wait, dry_run, resume, name, json)
    submit_and_follow(
        "pipeline", options, [f"pipeline.{key}={step}" for key, step in (("first", first), ("last", last)) if step]
    )
