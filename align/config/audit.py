"""Settings of the audit of a reward model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from align.config.base import DataSettings, RunSettings


class RewardAuditSettings(RunSettings):
    """What a finished reward model's score depends on: ``align reward audit``."""

    #: a finished reward run, or its folder ``reward``
    reward_model: str
    #: preferences of pictures that were not trained on, or responses without choices (``align sample``);
    #: None takes the pairs that the reward run held out, which chose its best step
    data: DataSettings | None = None
    #: conversations, at most
    limit: int | None = Field(None, ge=1)
    #: a folder of the built-in world, whose scenes tell what is true of a picture; None: captions tell
    world: str | None = None
    #: sentences that are added to a response, at most
    sentences: int = Field(1, ge=1)
    #: the response is cut to so many of its sentences, where it has more
    first_sentences: list[Annotated[int, Field(ge=1)]] = [1]
    #: the response is said so many times over
    repeats: list[Annotated[int, Field(ge=2)]] = [2]
    #: how many orders of the facts are tried; 0 for none
    fact_orders: int = Field(4, ge=0)
    #: how often labelers agree with each other; None: as the data shows it, else the thesis's 0.69
    label_agreement: float | None = Field(None, gt=0.5, le=1)
    #: responses scored in one pass
    batch_size: int = Field(32, ge=1)
    #: how the base runs, as in ``model`` of other stages
    device: str = "auto"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    trust_remote_code: bool = False
    #: resamples of an interval
    bootstrap: int = Field(1000, ge=100)
    #: responses shown with their picture in the page
    pictures: int = Field(8, ge=0)
    #: write the summary into the model's card, beside its weights
    card: bool = False

    @model_validator(mode="after")
    def _orders(self) -> RewardAuditSettings:
        if self.fact_orders == 1:
            raise ValueError("fact_orders is 1, and one order shows no spread; give 2 or more, or 0 for none")
        return self
