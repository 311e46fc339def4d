"""Starting from a model: the encoder, its weights and the heads of a checkpoint, whoever wrote it, and what is made afresh.

Only weights are taken. The step counter, the schedule and the optimiser's moments start anew: a scheduler that goes on from
the end of the old run has next to no learning rate left, and adapts nothing while it seems to.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from isogloss.core.config import Config
from isogloss.core.errors import ConfigError
from isogloss.core.lookup import find_module, names_in, nearest
from isogloss.core.types import Packed
from isogloss.encoders.base import Encoder
from isogloss.encoders.language_edits import EditsConfig, freeze_shared, install
from isogloss.encoders.presets import EncoderConfig, build_encoder
from isogloss.hub.load import load_model
from isogloss.hub.loaded import Loaded
from isogloss.objectives.base import ObjectiveConfig, build_objective
from isogloss.training.parallel import Learner

FRONTEND = "frontend"  # stands for the encoder's parameters that turn samples into features


class StartConfig(Config):
    """The model that a run starts from.

    model
        A folder (isogloss, Hugging Face) or a fairseq file. It may move; what it holds may not change under a run.
    sha256
        Of its tensors; filled in when the recipe is resolved, so that a resumed run knows whether it is the same model.
    heads
        "take" the heads that the checkpoint has and the objective can use, or leave all of them "fresh".
    frozen
        What is not trained: `frontend` (what turns samples into features; none in encoders on filterbanks), or beginnings of
        parameter names such as `encoder.layers.0` or `objective.quantizer` (`*` stands for anything).
    """

    model: str
    sha256: str = ""
    heads: Literal["take", "fresh"] = "take"
    frozen: tuple[str, ...] = ()


@dataclass
class StartReport:
    """What was taken from a checkpoint and what was not; `start.json` in the folder of the run."""

    model: str
    format: str
    sha256: str
    objective: str
    taken: list[str] = field(default_factory=list)  # heads
    fresh: list[str] = field(default_factory=list)  # heads, and tensors of the encoder, that the checkpoint lacks
    unused: list[str] = field(default_factory=list)  # heads that the checkpoint has and the objective does not
    rule: str = ""  # how the fresh ones were made
    frozen: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the report for people, a line each."""
        lines = [f"starts from {self.model} ({self.format}); step counter, schedule and optimiser start anew"]
        if self.taken:
            lines.append(f"heads of {self.objective} taken from it: {', '.join(_modules(self.taken))}")
        if self.fresh:
            lines.append(f"not in it: {', '.join(_modules(self.fresh))}; {self.rule}")
        if self.unused:
            lines.append(f"in it and not used by {self.objective}: {', '.join(_modules(self.unused))}")
        if self.frozen:
            lines.append(f"frozen: {', '.join(_modules(self.frozen))}")
        return [*lines, *self.notes]

    def tree(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def resolve_start(tree: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Fill a recipe's `[encoder]` and `[objective]` from the checkpoint that its `[start]` names.

    Keys of `[encoder]` (dropout, layerdrop, …) override the checkpoint's. The objective is the checkpoint's own with the
    recipe's keys on top, unless the recipe names another one. Raises `ConfigError` where neither names one, `CheckpointError`
    for a checkpoint that cannot be read.
    """
    start = dict(tree["start"])
    model = str(start.get("model", ""))
    if not model:
        raise ConfigError(
            f"{where}: [start] needs `model`, the folder or file to start from; give it with `--from MODEL`"
        )
    loaded = load_model(model)
    found = fingerprint(loaded)
    if start.get("sha256") and start["sha256"] != found:
        raise ConfigError(
            f"{where}: {model} is not the model that this run was configured with (its tensors have SHA-256 {found[:12]}…, expected "
            f"{str(start['sha256'])[:12]}…); usually because it was trained further or replaced; remove `start.sha256` to use it"
        )
    own = loaded.encoder.config.model_dump(mode="json")
    wished = dict(tree.get("encoder") or {})
    if "preset" in wished:
        raise ConfigError(
            f"{where}: `encoder.preset` and `start.model` both say what the encoder is; remove one of them"
        )
    if wished.get("kind", own["kind"]) != own["kind"]:
        raise ConfigError(
            f"{where}: `encoder.kind` is {wished['kind']!r}, but {model} holds a {own['kind']!r} encoder; leave it out"
        )
    objective = _objective_tree(tree.get("objective") or {}, loaded, model, where)
    return {
        **tree,
        **_edits_tree(tree.get("edits"), loaded, model, where),
        "start": {**start, "sha256": found},
        "encoder": own | wished,
        "objective": objective,
    }


def start_learner(
    start: StartConfig,
    encoder_config: EncoderConfig,
    objective_tree: Mapping[str, Any],
    edits: EditsConfig | None = None,
) -> tuple[Learner, StartReport]:
    """Build encoder and objective with the weights of the checkpoint; fresh parts come from torch's global generator.

    `edits` that the checkpoint does not have are put in at their start values.
    """
    loaded = load_model(start.model)
    found = fingerprint(loaded)
    if start.sha256 and found != start.sha256:
        raise ConfigError(f"{start.model} has changed since this run was configured; start a new run in another folder")
    encoder = build_encoder(encoder_config)
    if edits is not None and loaded.encoder.edits is not None:
        install(encoder, edits)
    _load_encoder(encoder, loaded, start.model)
    if edits is not None and encoder.edits is None:
        install(encoder, edits)
    # Built after the encoder has its weights: teachers start as copies of it.
    objective = build_objective(objective_tree, encoder)
    report = StartReport(start.model, loaded.report.format, found, str(objective_tree["name"]))
    heads = loaded.head_tensors if start.heads == "take" else {}
    taken = objective.take_heads(heads)
    # Counters and temperatures are no heads.
    own = objective.state_dict()
    fresh = [name for name in taken.fresh if own[name].dim() > 0]
    report.taken = [f"objective.{name}" for name in taken.taken]
    report.fresh = [f"encoder.{name}" for name in loaded.report.fresh] + [f"objective.{name}" for name in fresh]
    report.unused = [f"objective.{name}" for name in sorted(set(loaded.head_tensors) - {*taken.taken, *taken.sources})]
    if report.fresh:
        report.rule = objective.rebuild_heads(encoder, fresh)
    report.notes = list(loaded.report.notes)
    learner = Learner(encoder, objective)
    report.frozen = freeze(learner, start.frozen)
    report.frozen = sorted({*report.frozen, *(f"encoder.{name}" for name in freeze_shared(encoder))})
    return learner, report


def freeze(learner: Learner, patterns: Sequence[str]) -> list[str]:
    """Take parameters out of training and return their names; a pattern that fits none is a `ConfigError`."""
    named = dict(learner.named_parameters())
    frozen: list[str] = []
    for pattern in patterns:
        if pattern == FRONTEND:
            chosen = [f"encoder.{name}" for name in frontend_parameters(learner.encoder)]
        else:
            chosen = fnmatch.filter(named, pattern) + fnmatch.filter(named, f"{pattern}.*")
            if not chosen:
                known = sorted({".".join(name.split(".")[:depth]) for name in named for depth in (2, 3)})
                raise ConfigError(
                    f"`start.frozen` names `{pattern}`, which no parameter is called; {nearest(pattern, known)}"
                )
        frozen += chosen
    for name in frozen:
        named[name].requires_grad_(False)
    return sorted(set(frozen))


def frontend_parameters(encoder: Encoder) -> list[str]:
    """Return the names of the parameters that an encoder's features depend on: its convolutions on samples.

    Found by asking: those that half a second of sound sends a gradient to from `FrontendOutput.features`.
    """
    named = dict(encoder.named_parameters())
    wanted = {name: parameter.requires_grad for name, parameter in named.items()}
    was_training = encoder.training
    encoder.eval().requires_grad_(True)
    device = next(iter(named.values())).device
    try:
        with torch.enable_grad():
            sound_T = torch.sin(torch.arange(encoder.sample_rate // 2, device=device) / 20)
            features_ND = encoder.frontend(Packed.from_list([sound_T])).features.values_ND
            if not features_ND.requires_grad:
                return []
            gradients = torch.autograd.grad(features_ND.sum(), list(named.values()), allow_unused=True)
    finally:
        encoder.train(was_training)
        for name, parameter in named.items():
            parameter.requires_grad_(wanted[name])
    return [name for name, gradient in zip(named, gradients, strict=True) if gradient is not None]


def fingerprint(loaded: Loaded) -> str:
    """Return the SHA-256 of a checkpoint's tensors and of its encoder's configuration, however they are stored."""
    digest = hashlib.sha256(repr(sorted(loaded.encoder.config.model_dump(mode="json").items())).encode())
    encoder = {
        f"encoder.{name}": t for name, t in loaded.encoder.state_dict().items() if name not in loaded.report.fresh
    }
    for name, tensor in sorted({**encoder, **{f"objective.{n}": t for n, t in loaded.head_tensors.items()}}.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _objective_tree(wished: Mapping[str, Any], loaded: Loaded, model: str, where: str) -> dict[str, Any]:
    own = loaded.objective_tree
    name = wished.get("name")
    if own is not None and name in (None, own["name"]):
        module = find_module("isogloss.objectives", str(own["name"]))
        config: ObjectiveConfig = module.Config.model_validate(own)
        return config.continued().model_dump(mode="json") | dict(wished)
    if name is not None:
        sizes = _config_class(str(name)).of_heads(loaded.head_tensors) or {}
        return sizes | dict(wished)
    guesses: list[dict[str, Any]] = []
    for candidate in names_in("isogloss.objectives"):
        found = _config_class(candidate).of_heads(loaded.head_tensors)
        if found is not None:
            guesses.append({"name": candidate, **found})
    if len(guesses) == 1:
        return guesses[0] | dict(wished)
    fitting = f"; its heads fit {', '.join(guess['name'] for guess in guesses)}" if guesses else ""
    raise ConfigError(
        f"{where}: {model} does not say which objective it was trained with{fitting}; name one with `--set objective.name=…` "
        f"({', '.join(names_in('isogloss.objectives'))})"
    )


def _edits_tree(wished: Any, loaded: Loaded, model: str, where: str) -> dict[str, Any]:
    """Return the `edits` of a recipe: the checkpoint's where it has some, with the languages that the recipe protects."""
    own = loaded.encoder.edits
    if own is None:
        return {} if wished is None else {"edits": wished}
    tree = own.model_dump(mode="json") | {"protected": []}
    if wished is None:
        return {"edits": tree}
    if wished.get("kind", own.kind) != own.kind:
        raise ConfigError(
            f"{where}: `edits.kind` is {wished['kind']!r}, but {model} has {own.kind} already; leave it out"
        )
    return {"edits": tree | dict(wished)}


def _config_class(name: str) -> type[ObjectiveConfig]:
    found: type[ObjectiveConfig] = find_module("isogloss.objectives", name).Config
    return found


def _load_encoder(encoder: Encoder, loaded: Loaded, model: str) -> None:
    own, theirs = encoder.state_dict(), loaded.encoder.state_dict()
    faults = [
        name
        for name in own.keys() | theirs.keys()
        if name not in own or name not in theirs or own[name].shape != theirs[name].shape
    ]
    if faults:
        before, after = loaded.encoder.config.model_dump(), encoder.config.model_dump()
        changed = ", ".join(f"`encoder.{key}`" for key in before if before[key] != after[key])
        raise ConfigError(
            f"the weights of {model} do not fit the encoder that the recipe describes, which differs in {changed}; change only what "
            "needs no other tensors: dropouts, layerdrop, feature_gradient_scale, checkpoint_activations"
        )
    encoder.load_state_dict(theirs)


def _modules(names: Iterable[str]) -> list[str]:
    """Shorten parameter names to the modules that hold them, at most three words deep."""
    return sorted({".".join(name.split(".")[: min(3, max(1, name.count(".")))]) for name in names})
