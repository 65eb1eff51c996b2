"""Recipes: all packaged ones load, each error is one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from jobs.launch.prepare import prepare, with_steps
from tinymusician.artifacts.store import LocalStore
from tinymusician.errors import RecipeError
from tinymusician.recipe import LaionClapEmbeddingConfig, Recipe, load_recipe, recipe_names, recipe_yaml


@pytest.mark.parametrize("name", recipe_names())
def test_packaged_recipes_are_valid(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


def test_overrides_set_nested_values() -> None:
    recipe = load_recipe(
        "band", ("training.steps=7", "training.warmup_steps=1", "objective.skew=0.25", "student.layers=[3]")
    )
    assert (recipe.training.steps, recipe.objective.skew, recipe.student.layers) == (7, 0.25, (3,))  # type: ignore[union-attr]


def test_other_embedding_is_computed_separately() -> None:
    recipe = load_recipe("band", ("objective.name=fixed_bikl", "objective.weight=0.9"))
    assert recipe.objective.model_dump() == {"name": "fixed_bikl", "weight": 0.9, "hard": 0.0}


def test_only_a_given_encoder_is_tuned_on() -> None:
    with pytest.raises(RecipeError, match=r"pretrain\.finetune_pretrained: needs encoder\.model"):
        load_recipe("band-mu", ("understand.pretrain.finetune_pretrained=true",))
    tuned = load_recipe("band-mu-smol", ("understand.pretrain.finetune_pretrained=true",)).understand
    assert tuned is not None
    assert tuned.encoder.model == "band-mu"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.stepz=3", r"training\.stepz = 3: no such key"),
        ("training.steps=abc", r"training\.steps = 'abc': .*integer"),
        ("training.steps=0", r"training\.steps = 0: .*greater than or equal to 1"),
        ("objective.skew=1.0", r"objective\.skew = 1\.0: .*less than 1"),
        ("objective.skew=-0.1", r"objective\.skew = -0\.1: .*greater than or equal to 0"),
        ("temperature.initial=0", r"temperature\.initial = 0: .*greater than 0"),
        ("temperature.final=-1", r"temperature\.final = -1: .*greater than 0"),
        ("objective.name=foo", r"objective.*'foo'.*stage_mixed"),
        ("student.layers=[]", r"student\.layers: .*at least 1"),
        ("training.warmup_steps=120", r"warmup 120: fewer than steps \(120\)"),
        ("sequences.clip_share=0.3", r"clip_share 0\.3: needs `clips`"),
        ("sequences.clips=/tmp", r"clips: given, but clip_share is 0"),
        ("training.zero_stage=4", r"training\.zero_stage = 4: .*0, 1, 2 or 3"),
        ("teacher=3", r"teacher = 3"),
        ("teacher.model.x=3", r"'model' is a value, not a part"),
        ("training", r"the form is part\.key=value"),
    ],
)
def test_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe("band", (override,))
    assert "\n" not in str(caught.value)


def test_files_that_are_not_recipes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not packaged; allowed are band"):
        load_recipe("bnad")
    with pytest.raises(RecipeError, match="No such file"):
        load_recipe(str(tmp_path / "none.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(RecipeError, match="not YAML"):
        load_recipe(str(broken))
    broken.write_text("- 1")
    with pytest.raises(RecipeError, match="holds list"):
        load_recipe(str(broken))


def test_partial_threshold_keeps_other_defaults() -> None:
    gates = load_recipe("band", ("quantize.thresholds.int8.kl=0.5",)).quantize.thresholds
    thresholds = load_recipe("band").quantize.thresholds
    assert gates.int8 == thresholds.int8.model_copy(update={"kl": 0.5})
    assert gates.int4 == thresholds.int4
    with pytest.raises(RecipeError, match=r"quantize\.thresholds\.int8\.drums = 1: no such key"):
        load_recipe("band", ("quantize.thresholds.int8.drums=1",))


@pytest.mark.parametrize("name", recipe_names())
def test_yaml_of_a_recipe_is_the_same_recipe(name: str, tmp_path: Path) -> None:
    path = tmp_path / "copy.yaml"
    path.write_text(recipe_yaml(load_recipe(name)))
    assert load_recipe(str(path)) == load_recipe(name)


def test_extended_recipe_changes_only_its_keys(tmp_path: Path) -> None:
    (tmp_path / "four-layers.yaml").write_text(
        "extends: band\ndescription: d\nstudent: {layers: [0, 2, 5, 7]}\nobjective: {name: forward}\n"
    )
    (tmp_path / "longer.yaml").write_text("extends: ./four-layers.yaml\nname: long\ntraining: {steps: 300}\n")
    recipe = load_recipe(str(tmp_path / "longer.yaml"))
    overrides = ("student.layers=[0, 2, 5, 7]", "objective.name=forward", "training.steps=300")
    expected = load_recipe("band", (*overrides, "name=long", "description=d"))
    assert recipe == expected
    assert load_recipe(str(tmp_path / "four-layers.yaml")).name == "four-layers"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("extends: ./a.yaml", r"extends itself, through .*a\.yaml"),
        ("extends: bnad", "recipe 'bnad': not packaged"),
        ("extends: [band]", r"extends = \['band'\]: the name or path of one recipe"),
        ("extends: band\nstudent: {stepz: 1}", "student.stepz = 1: no such key"),
    ],
)
def test_mistakes_in_extends_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(tmp_path / "a.yaml"))


def test_the_batch_of_a_step_is_the_recipes() -> None:
    assert load_recipe("tinymusician").training.microbatches == 8
    assert load_recipe("band", ("training.global_batch=null",)).training.microbatches == 1
    with pytest.raises(RecipeError, match=r"global_batch 8: a multiple of batch_size \(3\) is needed"):
        load_recipe("band", ("training.batch_size=3",))


def test_epochs_are_steps(tmp_path: Path) -> None:
    """The paper's ten epochs of 160 prompts with eight samples each; steps that a user gives win."""
    assert with_steps(load_recipe("tinymusician")).training.steps == 10 * 160 * 8 / 32 == 400
    assert with_steps(load_recipe("tinymusician", ("training.global_batch=128",))).training.steps == 100
    with pytest.raises(RecipeError, match=r"the number of sequences of sequences\.clips is not known"):
        with_steps(load_recipe("tinymusician", ("sequences.clips=x", "sequences.clip_share=0.5")))
    store, epochs = LocalStore(tmp_path / "store"), "training.epochs=3"
    given = ["training.steps=17", "training.warmup_steps=2"]
    samples = load_recipe("band").sequences.samples_per_prompt
    assert prepare(store, "distill", "band", [epochs], None, None).training.steps == 3 * 160 * samples / 8
    assert prepare(store, "distill", "band", given, None, None).training.steps == 17


@pytest.mark.parametrize("folder", ["/opt/$(id)", "/opt/a b", "/opt/`id`", "/opt/a;id", "/opt/a\nid", ""])
def test_environment_that_a_shell_would_interpret_is_refused(folder: str) -> None:
    values = {"checkpoint": "c.pt", "tokenizer": "roberta", "audio_model": "HTSAT-base"}
    assert LaionClapEmbeddingConfig(**values, environment="~/env-1.0/x_y").environment == "~/env-1.0/x_y"
    with pytest.raises(ValidationError, match="Ray passes it to a shell"):
        LaionClapEmbeddingConfig(**values, environment=folder)
