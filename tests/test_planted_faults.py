"""The tests' own test: faults that are easily made, planted one at a time, must make a named check fail.

A fault replaces a piece of one function's source. The function's code is exchanged in place, so that every
module that imported it runs the faulty code; the check is one of the existing tests, called as it stands.
"""

from __future__ import annotations
import __future__

import contextlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import pytest

from align import actors, generate, pairs, ppo, render, reward, reward_model, rewards, rl, rows, schedule, sft
from align.models import lmm as lmm_module
from apps import gates
from data import images, jsonl
from data.schema import Preference
from data.world import annotators
from evals import metrics, mmhal, objects, parse, pope, recall, runner
from tests.align import (
    test_generate,
    test_lmm,
    test_pairs,
    test_ppo_step,
    test_render,
    test_reward,
    test_rewards,
    test_rl,
    test_schedule,
    test_sft,
)
from tests.align.conftest import colour_data, pictures, tiny_llava  # noqa: F401
from tests.align.test_generate import items  # noqa: F401
from tests.align.test_ppo import world  # noqa: F401
from tests.align.test_render import lmm, renderer  # noqa: F401
from tests.apps import test_gates, test_world_commands
from tests.data import test_images, test_jsonl, test_world_annotators
from tests.evals import test_metrics, test_mmhal, test_objects, test_parse, test_pope, test_runner


@dataclass(frozen=True)
class Fault:
    """``old`` stands once in the source of ``where``; with ``new`` in its place ``check`` must fail."""

    name: str
    where: Any
    old: str
    new: str
    check: Callable[..., None]
    #: arguments of the check that are no fixtures
    given: dict[str, Any] = field(default_factory=dict)


OFFICIAL = {"text": "NO", "want": "yes"}

FAULTS = [
    # --- the mathematics of PPO ---
    Fault("k1 is not clamped", rl.kl_penalty,
          "(-d).clamp(min=0)", "-d",
          test_rl.test_kl_k1_is_the_positive_part),
    Fault("k3 with the sign of k1", rl.kl_penalty,
          "ref_logprobs - logprobs", "logprobs - ref_logprobs",
          test_rl.test_k3_is_an_unbiased_kl),
    Fault("the KL is a reward", rl.shaped_rewards,
          "-kl_coef * kl", "kl_coef * kl",
          test_rl.test_score_lands_on_the_last_real_token),
    Fault("score on the padded row's end", rl.shaped_rewards,
          "last_index(mask)", "last_index(torch.ones_like(mask))",
          test_rl.test_score_lands_on_the_last_real_token),
    Fault("GAE off by one", rl.gae,
          "delta = rewards[:, t] + gamma * next_value", "delta = rewards[:, t] + gamma * values[:, t]",
          test_rl.test_gae_by_hand),
    Fault("GAE without lambda", rl.gae,
          "gamma * lam * advantage", "gamma * advantage",
          test_rl.test_gae_by_hand),
    Fault("GAE reads padding", rl.gae,
          "values = torch.where(mask > 0, values, 0)", "values = values * 1",
          test_rl.test_gae_never_reads_padding),
    Fault("whitening counts padding", rl.whiten,
          "real = mask > 0", "real = mask > -1",
          test_rl.test_whiten_over_real_tokens_only),
    Fault("each process whitens alone", rl.whiten,
          "total = reduce or _alone", "total = _alone",
          test_rl.test_whiten_of_parts_equals_whiten_of_the_whole),
    Fault("sign of the policy loss", rl.policy_loss,
          "plain = -advantages * ratio", "plain = advantages * ratio",
          test_rl.test_policy_gradient_at_ratio_one_is_minus_advantage),
    Fault("policy clipped on the wrong side", rl.policy_loss,
          "torch.maximum(plain, bounded)", "torch.minimum(plain, bounded)",
          test_rl.test_policy_loss_by_hand),
    Fault("ratio of old to new", rl.policy_loss,
          "logprobs - old", "old - logprobs",
          test_rl.test_policy_loss_by_hand),
    Fault("policy loss is a mean", rl.policy_loss,
          "torch.maximum(plain, bounded), 0).sum()", "torch.maximum(plain, bounded), 0).mean()",
          test_rl.test_splitting_a_batch_leaves_losses_and_gradients_alone),
    Fault("value clipped on the wrong side", rl.value_loss,
          "torch.maximum(plain, bounded)", "torch.minimum(plain, bounded)",
          test_rl.test_value_loss_by_hand),
    Fault("padding in explained variance", rl.explained_variance,
          "returns[real], (returns - values)[real]", "returns.flatten(), (returns - values).flatten()",
          test_rl.test_explained_variance),
    # --- one step of PPO ---
    Fault("the reference is the policy", actors.Actors.judge_tokens,
          "with adapters_off(self.lmm.model):", "if True:",
          test_ppo_step.test_log_probabilities_of_a_trained_policy_at_its_temperature),
    Fault("scored at temperature 1", actors.Actors.logprobs_and_entropy,
          "targets, self.temperature, with_entropy", "targets, 1.0, with_entropy",
          test_ppo_step.test_log_probabilities_of_a_trained_policy_at_its_temperature),
    Fault("values read one position late", actors.Sampled._places,
          "first[:, None] - 1 +", "first[:, None] +",
          test_ppo_step.test_values_are_those_ahead_of_each_token),
    Fault("the value adapter scores", reward_model.RewardModel.score,
          "self.activate()", "pass",
          test_ppo_step.test_scores_are_the_reward_model_s_own),
    Fault("symbolic rewards are dropped", ppo.Ppo.roll_out,
          "total(scores, parts, s.reward_scale)", "total(scores, {}, s.reward_scale)",
          test_ppo_step.test_scores_are_the_reward_model_s_own),
    Fault("no KL in the reward", ppo.Ppo.roll_out,
          "shaped_rewards(rewards, kl, mask, s.kl_coef)", "shaped_rewards(rewards, kl, mask, 0.0)",
          test_ppo_step.test_advantages_hold_score_and_penalty),
    Fault("every step draws the same numbers", ppo.Ppo.roll_out,
          'step_seed(s.seed, "rollout", step, rank)', 'step_seed(s.seed, "rollout", rank)',
          test_ppo_step.test_every_step_samples_anew),
    Fault("no learning-rate schedule", ppo.Ppo.update,
          'group["lr"] = self.rates[name] * factor', 'group["lr"] = self.rates[name]',
          test_ppo_step.test_learning_rates_follow_the_schedule),
    Fault("micro-batches weigh the same", ppo.Ppo.gradient_step,
          "policy.loss.backward()", "(policy.loss / policy.tokens).backward()",
          test_ppo_step.test_micro_batches_give_the_gradients_of_the_mini_batch),
    Fault("gradients are not clipped", ppo.Ppo.clip,
          "self.settings.optim.max_grad_norm", "1e9",
          test_ppo_step.test_gradients_are_clipped_each_learner_on_its_own),
    # --- rewards ---
    Fault("the pair's sign", reward.pair_loss,
          "F.logsigmoid(chosen - rejected)", "F.logsigmoid(rejected - chosen)",
          test_reward.test_pair_loss_by_hand),
    Fault("helpfulness ahead of honesty", Preference.preferred,
          "(HALLUCINATION, HELPFULNESS,", "(HELPFULNESS, HALLUCINATION,",
          test_pairs.test_target_chooses_the_question),
    Fault("an image on both sides", pairs.hold_out,
          "of_picture.setdefault(pair.cluster", "of_picture.setdefault(pair.id",
          test_pairs.test_hold_out_keeps_an_image_on_one_side),
    Fault("a wrong yes is not punished", rewards.correctness,
          "else -size", "else 0.0",
          test_rewards.test_correctness_has_the_thesis_values_by_default),
    Fault("complete responses are punished", rewards.symbolic,
          "0.0 if done else", "0.0 if not done else",
          test_rewards.test_parts_by_hand),
    Fault("warm-up starts at zero", schedule.lr_factor,
          "(step + 1) / warmup", "step / warmup",
          test_schedule.test_lr_factor_by_hand),
    # --- rendering, generation, log-probabilities ---
    Fault("labels shifted by one", render._labels,
          "labels[at] = ids[at]", "labels[at - 1] = ids[at]",
          test_render.test_ids_and_mask_equal_a_handmade_sequence),
    Fault("questions are learned", render.Renderer._text,
          "start = length - len(self._lead(roles, image, piece, str(layout[at - 1])))", "start = 0",
          test_render.test_ids_and_mask_equal_a_handmade_sequence),
    Fault("the end token is not learned", render.Renderer._text,
          "follow + len(self.end_token)))", "follow))",
          test_render.test_ids_and_mask_equal_a_handmade_sequence),
    Fault("image tokens are learned", render.Renderer._expand,
          "= [IGNORE] * count", "= [self.image_token_id] * count",
          test_render.test_ids_and_mask_equal_a_handmade_sequence),
    Fault("facts ahead of the response", render.Renderer.judged,
          "*messages,\n"
          '            Message(role="assistant", content=response),\n'
          '            Message(role="user", content=question),',
          "*messages,\n"
          '            Message(role="user", content=question),\n'
          '            Message(role="assistant", content=response),',
          test_render.test_reward_text_has_facts_between_response_and_score),
    Fault("facts in a fixed order", render.facts_text,
          "rng.shuffle(entries)", "pass",
          test_render.test_facts_are_shuffled_picked_and_limited),
    Fault("prompts padded right", rows._place,
          'side == "right"', "True",
          test_render.test_prompts_are_left_padded),
    Fault("planted tokens are alive", render.break_tokens,
          "while special.search(text)", "while False",
          test_render.test_planted_special_tokens_are_inert, {"planted": "</s>"}),
    Fault("log-probabilities off by one", lmm_module.token_logprobs,
          "[:, -response_len - 1 : -1]", "[:, -response_len:]",
          test_lmm.test_token_logprobs_and_entropy, {"temperature": 1.0}),
    Fault("temperature is forgotten", lmm_module._score,
          "logits = logits / temperature", "pass",
          test_lmm.test_token_logprobs_and_entropy, {"temperature": 0.7}),
    Fault("positions count padding", lmm_module.position_ids,
          "attention_mask.long()", "torch.ones_like(attention_mask)",
          test_lmm.test_position_ids_count_from_the_first_token),
    Fault("the end token is masked", generate._assemble,
          "is_end.long().cumsum(-1) - is_end.long() == 0", "is_end.long().cumsum(-1) == 0",
          test_generate.test_mask_covers_the_first_end_token_and_no_more),
    Fault("order is not restored", generate._assemble,
          "torch.tensor(order).argsort()", "torch.tensor(order)",
          test_generate.test_rollout_keeps_order_and_scores_what_was_sampled),
    Fault("the loss skips first tokens", sft.Collator.__call__,
          ".nonzero()[0]) - 1", ".nonzero()[0])",
          test_sft.test_logged_loss_is_the_mean_over_labelled_tokens),
    # --- evaluators ---
    Fault("POPE's official parser in lower case", parse.pope_official,
          'text.split(".")', 'text.lower().split(".")',
          test_parse.test_pope_official_keeps_the_quirks, OFFICIAL),
    Fault("commas stay", parse.pope_official,
          '.replace(",", "")', "",
          test_parse.test_pope_official_keeps_the_quirks, {"text": "I see no, really", "want": "no"}),
    Fault("Rating: 10 is ten", parse.rating_official,
          "found[0] if len(found) == 1 else None", "max(found, default=None)",
          test_parse.test_rating_official, {"text": "Rating: 2 ... Rating: 3", "want": None}),
    Fault("recall and precision swapped", pope._table,
          'answer == "yes" and not yes,\n                answer != "yes" and yes,',
          'answer != "yes" and yes,\n                answer == "yes" and not yes,',
          test_pope.test_figures_by_hand_under_both_rules),
    Fault("unparsed counts as right no", pope._table,
          "answer == item.label", 'answer == item.label or (answer is None and not yes)',
          test_pope.test_figures_by_hand_under_both_rules),
    Fault("the labels' yes-ratio", pope._table,
          'answer == "yes",\n                True', "yes,\n                True",
          test_pope.test_figures_by_hand_under_both_rules),
    Fault("F1 pooled over splits", pope._mean_f1,
          "sums.reshape(*sums.shape[:-1], splits, 6)).mean(axis=-1)",
          "sums.reshape(*sums.shape[:-1], splits, 6).sum(axis=-2))",
          test_pope.test_overall_f1_is_the_mean_of_splits_not_the_pooled_one),
    Fault("CHAIR_i of distinct objects", objects.describe,
          "named, there = mentions(text)", "named, there = list(dict.fromkeys(mentions(text)))",
          test_objects.test_figures_by_hand),
    Fault("recall counts repeats", objects.describe,
          "len(there & set(named))", "sum(n in there for n in named)",
          test_objects.test_describe_counts_repeats_and_distinct_true_objects),
    Fault("three is a hallucination", mmhal.MmhalBenchmark._figures,
          "score < NO_HALLUCINATION", "score <= NO_HALLUCINATION",
          test_mmhal.test_score_rate_and_types_by_hand),
    Fault("intervals ignore images", metrics._by_cluster,
          "if clusters is None:", "if True:",
          test_metrics.test_clusters_widen_the_interval_of_copied_answers),
    Fault("models resampled apart", metrics.paired_difference,
          "np.hstack([a, b])", "np.hstack([a, b[::-1]])",
          test_metrics.test_paired_difference_uses_the_pairing),
    Fault("recall is not matched", recall._weighted,
          "np.nan_to_num(divide(counts.prod(axis=-2), counts.sum(axis=-2)))", "counts.sum(axis=-2)",
          test_metrics.test_matched_recall_by_hand),
    Fault("joined by position", runner.answer,
          "{item.id: got[item.id] for item in batch}", "dict(zip((i.id for i in batch), got.values()))",
          test_runner.test_results_are_joined_by_id_and_written),
    # --- data and labelers ---
    Fault("paths may leave the root", images.image_path,
          "if not full.is_relative_to(base):", "if False:",
          test_images.test_a_link_out_of_the_root_is_refused_and_one_inside_is_not),
    Fault("bad records are never too many", jsonl.keep,
          "if bad > max_bad", "if False and bad > max_bad",
          test_jsonl.test_one_percent_bad_is_tolerated_and_more_is_not),
    Fault("silence wins", annotators.Labeler.choose,
          "a.false != b.false and floor", "a.false != b.false",
          test_world_annotators.test_clean_choices,
          {"a": "", "b": "A cat and a book, and a cup.", "choices": (None, 1)}),
    Fault("slips dropped", annotators.Labeler._slip,
          "1 - choice if rng.random() < self.flip else choice", "choice",
          test_world_commands.test_noisy_labelers_err_and_their_seed_decides_where),
    # --- studies ---
    Fault("spread of a population", metrics.t_interval,
          "ddof=1", "ddof=0",
          test_metrics.test_t_interval_by_hand),
    Fault("one degree of freedom too many", metrics.t_interval,
          "t95(n - 1)", "t95(n)",
          test_metrics.test_t_interval_by_hand),
    Fault("the gate is not above", gates.passes,
          "accuracy > GATE", "accuracy >= GATE",
          test_gates.test_the_gate, {"accuracy": 0.55, "passed": False}),
]  # fmt: skip


def function_of(where: Any) -> FunctionType:
    """The plain function behind a function, method or property."""
    return inspect.unwrap(where.fget if isinstance(where, property) else where)


@contextlib.contextmanager
def planted(fault: Fault) -> Iterator[None]:
    """The function of the fault runs the faulty code."""
    function = function_of(fault.where)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(fault.old) == 1, f"{fault.name}: {fault.old!r} does not stand once in the source"
    found: dict[str, Any] = {}
    flags = __future__.annotations.compiler_flag
    code = compile(source.replace(fault.old, fault.new), f"<{fault.name}>", "exec", flags, dont_inherit=True)
    exec(code, function.__globals__, found)
    sound = function.__code__
    function.__code__ = function_of(found[function.__name__]).__code__
    try:
        yield
    finally:
        function.__code__ = sound


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_found(
    fault: Fault, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def check() -> None:
        names = [name for name in inspect.signature(fault.check).parameters if name not in fault.given]
        values = {name: request.getfixturevalue(name) for name in names if name != "tmp_path"}
        if "tmp_path" in names:
            values["tmp_path"] = tmp_path_factory.mktemp("check")
        fault.check(**values, **fault.given)

    check()
    with planted(fault), pytest.raises((AssertionError, pytest.fail.Exception)):
        check()
    check()
