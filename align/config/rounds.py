"""Settings of several rounds of sampling, labelling, reward model and PPO in one recipe.

A section has the settings of its stage (``align.config``) but for those that the rounds fill in: where it
writes, what it reads, on which model, and what all stages share (seed, threads, reports).
"""

from __future__ import annotations

from typing import Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, model_validator

from align.config.base import DataSettings, ModelSettings, RunSettings, Settings
from align.config.evaluation import EndpointSettings, EvalSettings
from align.config.rl import PpoSettings
from align.config.training import RewardSettings, SampleSettings

#: stands where the rounds fill in a setting
FILLED = "filled in by the rounds"


class Filled(Settings):
    """The settings of a stage that the rounds fill in; no run's own: its defaults would hide the stage's."""

    output: str = Field(FILLED, exclude=True)
    seed: int = Field(0, exclude=True)
    resume: bool = Field(False, exclude=True)
    dry_run: bool = Field(False, exclude=True)
    threads: int = Field(0, exclude=True)
    report_to: list[Literal["tensorboard", "wandb"]] = Field(default=[], exclude=True)
    model: ModelSettings = Field(ModelSettings(path=FILLED), exclude=True)

    @model_validator(mode="after")
    def _left_out(self) -> Filled:
        for name, field in type(self).model_fields.items():
            if field.exclude and getattr(self, name) != field.default:
                raise ValueError(f"{name} is filled in by the rounds; leave it out of this section")
        return self


class SampleRound(Filled, SampleSettings):
    data: DataSettings = Field(DataSettings(path=FILLED), exclude=True)


class RewardRound(Filled, RewardSettings):
    data: DataSettings = Field(DataSettings(path=FILLED), exclude=True)


class PpoRound(Filled, PpoSettings):
    data: DataSettings = Field(DataSettings(path=FILLED), exclude=True)
    reward_model: str = Field(FILLED, exclude=True)


class EvalRound(Filled, EvalSettings):
    model: ModelSettings = Field(ModelSettings(path=FILLED), exclude=True)
    endpoint: EndpointSettings | None = Field(None, exclude=True)


class RoundPrompts(DataSettings):
    """Prompts, and how they are dealt out to the rounds."""

    #: every round gets prompts of its own, drawn at random; false: the same for all
    fresh: bool = True
    #: prompts of one round; None: an equal share of them (all, where they are not fresh)
    per_round: int | None = Field(None, ge=1)


class LabelSettings(Settings):
    """Who chooses between the responses: the built-in world's simulated labelers, or people.

    ``file`` stops after sampling and waits for a file of labels, whatever made it. ``app`` puts the samples
    into the store of ``align annotate``, and goes on once the people there have voted; without ``store`` it
    waits for the app's export, as ``file`` does.
    """

    by: Literal["simulated", "file", "app"]
    #: simulated: the folder of the built-in world that the pictures are of
    world: str | None = None
    #: simulated: labelers that see everything and never slip
    clean: bool = False
    #: where the labels of a round will be, with {round} for its number; default: choices.jsonl in its folder
    file: str | None = None
    #: its format (``align data formats``); None reads the project's own JSONL
    format: str | None = None
    options: dict[str, str] = {}
    #: app: sqlite:///FILE or postgresql://USER@HOST/NAME, made if it is not there; one for all rounds
    store: str | None = None
    #: app: votes a pair, and the share of pairs that get ``overlap_votes`` instead
    votes: int = Field(1, ge=1, le=100)
    overlap: float = Field(0.1, ge=0, le=1)
    overlap_votes: int = Field(3, ge=1, le=100)
    #: app: of the pairs that must have their votes before the round goes on
    share: float = Field(1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _whose(self) -> LabelSettings:
        if (self.by == "simulated") != (self.world is not None):
            raise ValueError(
                "simulated labelers need world, the folder of the built-in world; others take none"
            )
        if self.store is None:
            return self
        if self.by != "app" or self.file is not None:
            raise ValueError("store is the app's: set by to app, and leave out file")
        if self.format is not None or self.options:
            raise ValueError("votes come out of store as they are: leave out format and options")
        url = urlsplit(self.store)
        if url.password is not None or "password" in parse_qs(url.query, keep_blank_values=True):
            # the settings are written into the run's folder, and shown
            raise ValueError("store holds a password; leave it out, and give it by PGPASSWORD or ~/.pgpass")
        return self


class RoundsSettings(RunSettings):
    """Rounds of: sample from the present policy, label, train a reward model, PPO, and perhaps evaluate."""

    rounds: int = Field(2, ge=1)
    #: the policy that the first round samples from; its adapters are merged, those of the rounds after them
    model: ModelSettings
    #: another base for the reward models (thesis: 13B for a 7B policy); None: the one that PPO starts from,
    #: which then is in memory once
    reward_base: ModelSettings | None = None
    #: asked for responses to be labelled
    prompts: RoundPrompts
    #: what PPO rolls out from; None: the prompts that were labelled
    ppo_prompts: RoundPrompts | None = None
    #: where PPO starts and what its KL is measured from: the policy of the round before, or ``model`` again
    start: Literal["previous", "first"] = "previous"
    #: what a reward model learns from: the labels of all rounds so far, or of its own
    pairs: Literal["all", "newest"] = "all"
    labels: LabelSettings
    sample: SampleRound = SampleRound()
    reward: RewardRound = RewardRound()
    ppo: PpoRound = PpoRound()
    #: measures ``model`` and the policy of every round; None: nothing is measured
    eval: EvalRound | None = None
    #: words that start PPO in processes of its own, e.g. [torchrun, --nproc_per_node, "8"]; none: right here
    launch: list[str] = []

    @model_validator(mode="after")
    def _named_apart(self) -> RoundsSettings:
        if self.rounds > 1 and self.labels.file is not None and "{round}" not in self.labels.file:
            raise ValueError(
                f"labels.file {self.labels.file!r} would be the same for all rounds; put {{round}} in it"
            )
        return self
