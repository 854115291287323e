"""A language model on this machine as a judge: it reads the request's text and writes its verdict."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from align.config import GenerateSettings, ModelSettings
from align.models.lmm import ModelError
from align.render import break_tokens
from align.schedule import step_seed
from evals.journal import content_hash
from evals.judges import JudgeRequest


class LocalJudge:
    """Loaded when it is first asked, so that a replay from kept verdicts needs no weights.

    Args:
        model: a checkpoint of a causal language model, or of an image-text-to-text one (no image is given).
    """

    def __init__(self, model: ModelSettings, max_tokens: int, temperature: float, batch_size: int) -> None:
        self.model = model
        self.how = GenerateSettings(max_new_tokens=max_tokens, temperature=temperature, batch_size=batch_size)
        self._says: Any = None

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def settings(self) -> str:
        """Hash of what decides its words beside the request."""
        model = self.model.model_dump(mode="json", exclude={"device"})
        return content_hash([model, self.how.max_new_tokens, self.how.temperature])

    def judge(self, requests: Sequence[JudgeRequest]) -> dict[str, str]:
        """The model's words by id; at a temperature above 0 each repeat is drawn with a seed of its own."""
        if self._says is None:
            self._says = _speaker(self.model)
        found: dict[str, str] = {}
        for repeat in sorted({request.repeat for request in requests}):
            asked = [request for request in requests if request.repeat == repeat]
            seed = step_seed(0, f"judge {repeat}", asked[0].key)
            texts = self._says([request.prompt for request in asked], self.how, seed)
            found |= {request.id: text for request, text in zip(asked, texts, strict=True)}
        return found


def _speaker(settings: ModelSettings) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    try:
        config = AutoConfig.from_pretrained(settings.path, trust_remote_code=settings.trust_remote_code)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{settings.path}: cannot be loaded ({reason}); check judge.local.path") from error
    if config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return _Multimodal(settings)
    return _Text(settings)


class _Multimodal:
    def __init__(self, settings: ModelSettings) -> None:
        from align.models.lmm import load
        from align.render import Renderer

        self.lmm = load(settings)
        self.renderer = Renderer(self.lmm.processor)

    def __call__(self, prompts: list[str], how: GenerateSettings, seed: int) -> list[str]:
        from align.generate import Item, generate
        from data.schema import Message, Response

        items: list[Item] = [([Message(role="user", content=prompt)], None) for prompt in prompts]
        answers = generate(self.lmm, self.renderer, items, how, seed=seed)
        return [answer.text for answer in answers if isinstance(answer, Response)]


class _Text:
    def __init__(self, settings: ModelSettings) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from align.models.lmm import device_of, named_errors
        from align.models.quantized import quantization

        if settings.adapters:
            mend = "merge the adapter into the checkpoint first"
            raise ModelError(f"{settings.path}: a text judge takes no adapter (judge.local.adapter); {mend}")
        device = device_of(settings.device)
        dtype = getattr(torch, settings.dtype)
        trust = settings.trust_remote_code
        options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust}
        options["attn_implementation"] = settings.attention
        if settings.bits:
            options |= {"quantization_config": quantization(settings.bits, dtype), "device_map": {"": device}}
        with named_errors(settings.path, OSError, ValueError):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(settings.path, trust_remote_code=trust)
            self.model: Any = AutoModelForCausalLM.from_pretrained(settings.path, **options)
        if self.tokenizer.chat_template is None:
            rule = f"{settings.path}: has no chat template"
            raise ModelError(f"{rule}; a judge must be a chat model (judge.local.path)")
        if not settings.bits:
            self.model = self.model.to(device)
        self.model.eval()
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        longest_first = sorted((token for token in added if token.strip()), key=len, reverse=True)
        # a response must not end its turn and speak as the judge
        self.special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    @torch.no_grad()
    def __call__(self, prompts: list[str], how: GenerateSettings, seed: int) -> list[str]:
        from align.generate import decoding, seeded

        texts: list[str] = []
        broken = (break_tokens(prompt, self.special) for prompt in prompts)
        chats = [[{"role": "user", "content": prompt}] for prompt in broken]
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        known = sorted({end for end in (*ends, self.tokenizer.eos_token_id) if end is not None})
        config = decoding(how, known, self.tokenizer.pad_token_id)
        with seeded(seed, self.model.device):
            for start in range(0, len(chats), how.batch_size):
                batch = self.tokenizer.apply_chat_template(
                    chats[start : start + how.batch_size], add_generation_prompt=True, return_dict=True,
                    return_tensors="pt", padding=True, padding_side="left",
                ).to(self.model.device)  # fmt: skip
                out = self.model.generate(**batch, generation_config=config)
                said = out[:, batch["input_ids"].shape[1] :]
                texts += self.tokenizer.batch_decode(said, skip_special_tokens=True)
        return [text.strip() for text in texts]
