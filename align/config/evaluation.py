"""Settings of evaluation: who answers, what is asked, who judges."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from align.config.base import GenerateSettings, ModelSettings, RunSettings, Settings


class EndpointSettings(Settings):
    """An OpenAI-compatible chat endpoint."""

    #: the API's root, e.g. http://localhost:8000/v1
    url: str
    #: the name that the server knows
    model: str
    #: environment variable that holds the key
    key_env: str = "OPENAI_API_KEY"
    timeout: float = Field(120.0, gt=0)
    retries: int = Field(5, ge=0)
    #: requests started a minute, at most
    per_minute: float | None = Field(None, gt=0)
    workers: int = Field(4, ge=1)
    #: cost of a million tokens read and written, for the estimate that is shown first
    price_input: float = Field(0.0, ge=0)
    price_output: float = Field(0.0, ge=0)


class JudgeSettings(Settings):
    """Who rates answers (MMHal-Bench, LLaVA-Bench): an endpoint, or a language model on this machine."""

    endpoint: EndpointSettings | None = None
    #: a checkpoint of a language model, with images or without; it reads text only
    local: ModelSettings | None = None
    max_tokens: int = Field(1024, ge=1)
    temperature: float = Field(0.0, ge=0)
    #: prompts that a local judge reads at once
    batch_size: int = Field(8, ge=1)
    #: how often the judge is asked the same
    repeats: int = Field(1, ge=1)
    #: where its verdicts are kept by content; default: verdict_cache.jsonl in the output
    cache: str | None = None

    @model_validator(mode="after")
    def _one(self) -> JudgeSettings:
        if self.local is not None and self.repeats > 1 and self.temperature == 0:
            raise ValueError("at temperature 0 a local judge repeats itself; raise it, or leave repeats at 1")
        if (self.endpoint is None) == (self.local is None):
            raise ValueError(
                "name one judge: judge.endpoint.url with judge.endpoint.model, or judge.local.path"
            )
        return self


class ChairSettings(Settings):
    """What CHAIR needs beside ``benchmarks.chair``."""

    #: captions_val2014.json; the official truth counts what captions name too
    captions: str | None = None
    #: the official synonyms.txt; default: our own list
    synonyms: str | None = None
    #: image ids to describe, one a line; default: all of the annotations (of a file of answers: its own)
    images: str | None = None


class BenchmarkSettings(RunSettings):
    """Which benchmarks, and what they are judged by; for a model's run and for files of answers."""

    #: benchmark -> its file; amber and llava_bench: the folder of their files
    benchmarks: dict[
        Literal[
            "pope_random", "pope_popular", "pope_adversarial", "mmhal", "describe",
            "chair", "amber", "llava_bench", "mmbench",
        ],
        str,
    ]  # fmt: skip
    #: the image root; MMHal's web addresses are looked up in it by their last part
    images: str | None = None
    #: folder of POPE's pictures inside ``images``
    pope_prefix: str = ""
    #: a folder of the built-in world: its scenes are the judge of mmhal and the truth of describe
    world: str | None = None
    #: recorded verdicts of a judge (JSONL)
    verdicts: str | None = None
    judge: JudgeSettings | None = None
    #: a file with MMHal's judge prompt in place of our own wording
    judge_prompt: str | None = None
    chair: ChairSettings = ChairSettings()
    #: finder of AMBER's nouns: auto (spaCy's en_core_web_lg if installed), words, or a spaCy model's name
    amber_nouns: str = "auto"
    limit: int | None = Field(None, ge=1)
    bootstrap: int = Field(1000, ge=100)


class EvalSettings(BenchmarkSettings):
    #: who answers: a checkpoint here or on the Hub, or a model behind an endpoint that takes images
    model: ModelSettings | None = None
    endpoint: EndpointSettings | None = None
    #: further temperatures at which the describe prompts are answered, beside generate.temperature
    describe_temperatures: list[float] = []
    #: how yes/no questions are answered: generated, or the likelier of the two as the first token
    yes_no: Literal["generate", "next_token"] = "generate"
    generate: GenerateSettings = GenerateSettings(max_new_tokens=128, temperature=0.0)

    @model_validator(mode="after")
    def _one(self) -> EvalSettings:
        if (self.model is None) == (self.endpoint is None):
            raise ValueError(
                "name one model: model.path, or endpoint.url with endpoint.model "
                "(model=null leaves a recipe's model out)"
            )
        if self.endpoint is not None and self.yes_no != "generate":
            raise ValueError("an endpoint shows no probabilities; leave yes_no at generate")
        return self


class ScoreSettings(BenchmarkSettings):
    #: a file of answers to all the benchmarks, or benchmark -> file
    answers: str | dict[str, str]
    #: whose answers they are, for the tables
    name: str = "answers"
