"""Assemble a LLaVA model and its processor from a vision tower, a language model and a tokenizer."""

from __future__ import annotations

from typing import Any

from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedModel,
)

from align.models.vision import OPENAI_MEAN, OPENAI_STD

#: LLaVA-1.5's layout with an end token after each answer; the generation prompt ends without a space,
#: so that it is a token prefix of the whole conversation.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set parts = [message['content']] if message['content'] is string else message['content'] -%}
{%- if message['role'] == 'user' -%}{{ 'USER: ' }}
{%- elif message['role'] == 'assistant' -%}{{ 'ASSISTANT: ' }}{%- endif -%}
{%- for part in parts -%}
{%- if part is not string and part['type'] == 'image' -%}{{ '<image>\n' }}{%- endif -%}
{%- endfor -%}
{%- for part in parts -%}
{%- if part is string -%}{{ part }}
{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{{ eos_token if message['role'] == 'assistant' else ' ' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"""


class ModelError(ValueError):
    """A checkpoint or a model that a stage cannot use; the text says what is wrong and how to mend it."""


def build_llava(
    vision: PretrainedConfig | PreTrainedModel,
    text_config: PretrainedConfig,
    tokenizer: Any,
    *,
    image_size: int,
    chat_template: str | None = None,
    feature_layer: int = -2,
    projector_act: str = "gelu",
    image_backend: str = "torchvision",
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Assemble a LLaVA model and its processor.

    ``vision`` is a config (random tower) or a ready tower, whose weights are copied. ``feature_layer``
    indexes the tower's hidden states: -1 the grid after its last layer, -2 before it (thesis, 9.2 uses both).
    The projector is LLaVA-1.5's two-layer MLP and bridges any two widths. Pictures are resized to
    ``image_size`` squares whole, never cropped, since what is cut off would look like a hallucination.
    ``image_backend``: "torchvision" costs less, "pil" equals open_clip's own resizing exactly. Raises
    ModelError for parts that do not fit.
    """
    vision_config = vision.config if isinstance(vision, PreTrainedModel) else vision
    _prepare_tokenizer(tokenizer, text_config)
    if vision_config.image_size != image_size:
        raise ModelError(
            f"image_size {image_size} differs from the tower's {vision_config.image_size}; make them equal"
        )
    has_cls = getattr(vision_config, "has_cls", True)
    cells = (image_size // vision_config.patch_size) ** 2
    config = LlavaConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=cells,
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy="default" if has_cls else "full",
        projector_hidden_act=projector_act,
        tie_word_embeddings=bool(text_config.tie_word_embeddings),
    )
    model = LlavaForConditionalGeneration(config)
    if isinstance(vision, PreTrainedModel):
        model.model.vision_tower.load_state_dict(vision.state_dict())
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    for holder in (model.generation_config, model.config, model.config.text_config):
        for key, value in ids.items():
            setattr(holder, key, value)
    processor = LlavaProcessor(
        image_processor=_image_processor(vision_config, image_size, image_backend),
        tokenizer=tokenizer,
        patch_size=vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=int(has_cls),
        chat_template=chat_template or CHAT_TEMPLATE,
    )
    return model, processor


def _prepare_tokenizer(tokenizer: Any, text_config: PretrainedConfig) -> None:
    if tokenizer.eos_token is None:
        raise ModelError("the tokenizer has no eos_token; set one, it marks the end of every answer")
    if tokenizer.pad_token is None:
        raise ModelError("the tokenizer has no pad_token; set one that differs from eos_token")
    if "<image>" not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.padding_side = "left"
    if len(tokenizer) > text_config.vocab_size:
        raise ModelError(
            f"text_config.vocab_size {text_config.vocab_size} < {len(tokenizer)} tokens; enlarge it"
        )


def _image_processor(vision_config: PretrainedConfig, size: int, backend: str) -> Any:
    from transformers import CLIPImageProcessor, CLIPImageProcessorPil

    classes = {"pil": CLIPImageProcessorPil, "torchvision": CLIPImageProcessor}
    if backend not in classes:
        raise ModelError(f"image_backend {backend!r} is unknown; choose one of {sorted(classes)}")
    square = {"height": size, "width": size}
    return classes[backend](
        size=square,
        crop_size=square,
        do_center_crop=False,
        image_mean=list(getattr(vision_config, "image_mean", OPENAI_MEAN)),
        image_std=list(getattr(vision_config, "image_std", OPENAI_STD)),
    )
