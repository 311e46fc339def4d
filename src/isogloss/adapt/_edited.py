"""Jobs of methods that edit the encoder before it is trained: fresh edits, edits that are there, and languages that are added."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from isogloss.core.errors import ConfigError
from isogloss.core.rng import derive_seed
from isogloss.data.index import CorpusIndex
from isogloss.encoders.language_edits import EditsConfig, with_languages
from isogloss.hub.load import load_model
from isogloss.hub.save import DESCRIPTION, save_model
from isogloss.objectives.base import Objective
from isogloss.training.job import Job, build_job
from isogloss.training.parallel import Learner, on_main
from isogloss.training.recipe import Recipe
from isogloss.training.start import fingerprint, start_learner

# Which method makes and adds to each kind of edits.
METHOD_OF = {"masks": "subnetwork", "one-hot": "one_hot", "adapters": "adapters", "gates": "gates", "lora": "lora"}
_OF_THE_RUN = {"languages", "protected", "freeze_shared"}  # the rest of the settings of edits belongs to the model


def edited_job(recipe: Recipe, edits: EditsConfig, run_dir: Path) -> Job:
    """Return the job that trains an encoder with these edits for the languages of the corpus.

    A model that has such edits keeps them. Languages that are new to it get rows of their own, and those that it knows are
    protected: nothing that they use is trained. Raises `ConfigError` where the model's edits have another kind or size.
    """
    own = edits_of_model(recipe)
    languages = corpus_languages(recipe)
    if own is None:
        return build_job(recipe.model_copy(update={"edits": edits}))
    check_kind(own, edits)
    new = [name for name in languages if name not in own.languages]
    if not new:
        edits = own.model_copy(update={"freeze_shared": edits.freeze_shared})
        return build_job(recipe.model_copy(update={"edits": edits}))

    def grow(learner: Learner) -> None:
        with_languages(learner.encoder, new)

    return build_job(edited_start(recipe, run_dir, grow, protected=own.languages))


def edited_start(
    recipe: Recipe, run_dir: Path, edit: Callable[[Learner], None], *, protected: tuple[str, ...] = ()
) -> Recipe:
    """Edit the learner that a recipe starts from, keep it in `run_dir/start`, and return the recipe that starts from there.

    Every rank calls this; what is in the folder already is used again.
    """
    assert recipe.start is not None
    folder = run_dir / "start"
    if not on_main(lambda: (folder / DESCRIPTION).is_file()):
        torch.manual_seed(derive_seed(recipe.training.seed, "weights"))
        learner, _ = start_learner(recipe.start, recipe.encoder, recipe.objective, recipe.edits)
        edit(learner)
        objective = learner.objective
        assert isinstance(objective, Objective)
        on_main(lambda: save_model(folder, learner.encoder, objective, {}))
    loaded = load_model(folder)
    assert loaded.encoder.edits is not None
    edits = loaded.encoder.edits.model_copy(update={"protected": protected})
    # The start of before this stands in the run's `adapt.json`; its weights are these.
    start = recipe.start.model_copy(update={"model": str(folder), "sha256": fingerprint(loaded), "heads": "take"})
    return recipe.model_copy(update={"start": start, "edits": edits})


def edits_of_model(recipe: Recipe) -> EditsConfig | None:
    """Return the edits of the model that a recipe starts from."""
    assert recipe.start is not None
    return load_model(recipe.start.model).encoder.edits


def corpus_languages(recipe: Recipe) -> list[str]:
    """Return the languages that are trained on, sorted; utterances that do not say theirs are a `ConfigError`."""
    index = CorpusIndex.open(recipe.data.path)
    names = [
        name for name in sorted(index.language_names) if recipe.data.languages is None or name in recipe.data.languages
    ]
    silent = int((index.languages < 0).sum()) if recipe.data.languages is None else 0
    if silent or not names:
        raise ConfigError(
            f"{recipe.data.path}: {silent or len(index)} of {len(index)} utterances do not say their language, which this method needs; "
            "try a folder for each language"
        )
    return names


def check_kind(own: EditsConfig, wished: EditsConfig) -> None:
    """Refuse to put edits of one kind over those of another, and settings that the model's edits cannot follow any more."""
    if own.kind != wished.kind:
        raise ConfigError(
            f"the model has {own.kind} for its languages already, not {wished.kind}; go on with the method that made them, or start from "
            "the model without"
        )
    mine, theirs = (config.model_dump(exclude=_OF_THE_RUN) for config in (own, wished))
    changed = [
        f"`method.{key}` is {theirs[key]!r}, but they were made with {mine[key]!r}"
        for key in mine
        if mine[key] != theirs[key]
    ]
    if changed:
        raise ConfigError(
            f"the model has {own.kind} for its languages already, whose size cannot change: {', '.join(changed)}; set that, or start from "
            "the model without"
        )
