"""Typed settings of every stage: a YAML recipe, then ``key=value`` on the command line.

An unknown key is an error that names the nearest known one. Defaults are the thesis's where it
gives them (chapter 9 and appendix H); recipes under ``apps/recipes`` set the rest.
"""

from __future__ import annotations

from align.config.audit import RewardAuditSettings as RewardAuditSettings
from align.config.base import WORLD_BASE as WORLD_BASE
from align.config.base import DataSettings as DataSettings
from align.config.base import FactKind as FactKind
from align.config.base import GenerateSettings as GenerateSettings
from align.config.base import LoraSettings as LoraSettings
from align.config.base import ModelSettings as ModelSettings
from align.config.base import OptimSettings as OptimSettings
from align.config.base import RunSettings as RunSettings
from align.config.base import Settings as Settings
from align.config.base import is_hub_id as is_hub_id
from align.config.evaluation import BenchmarkSettings as BenchmarkSettings
from align.config.evaluation import ChairSettings as ChairSettings
from align.config.evaluation import EndpointSettings as EndpointSettings
from align.config.evaluation import EvalSettings as EvalSettings
from align.config.evaluation import JudgeSettings as JudgeSettings
from align.config.evaluation import ScoreSettings as ScoreSettings
from align.config.rl import PpoSettings as PpoSettings
from align.config.rl import SymbolicSettings as SymbolicSettings
from align.config.rl import UserReward as UserReward
from align.config.rounds import RoundPrompts as RoundPrompts
from align.config.rounds import RoundsSettings as RoundsSettings
from align.config.siblings import BestOfSettings as BestOfSettings
from align.config.siblings import DpoSettings as DpoSettings
from align.config.siblings import GroupSettings as GroupSettings
from align.config.siblings import GrpoSettings as GrpoSettings
from align.config.siblings import RlooSettings as RlooSettings
from align.config.training import RewardSettings as RewardSettings
from align.config.training import SampleSettings as SampleSettings
from align.config.training import SftSettings as SftSettings
from align.recipe import ConfigError as ConfigError
from align.recipe import load_recipe as load_recipe
from align.recipe import resolve as resolve
