"""Our models inside transformers, so that its Auto classes and its heads take them.

    import srattn.integrations.transformers
    from transformers import AutoBackbone
    from srattn.integrations.transformers import SrattnConfig

    backbone = AutoBackbone.from_config(SrattnConfig(model="pvt_v2_b0", out_indices=(0, 1, 2, 3)))

Importing this module registers `SrattnConfig` (model type "srattn") with AutoConfig, AutoModel, AutoBackbone and
AutoModelForImageClassification; nothing else of srattn imports it. A folder that `save_pretrained` wrote is read by
`from_pretrained` of these classes (AutoBackbone's asks the hub first: a local folder is for
`SrattnBackbone.from_pretrained`). Images are `pixel_values`, (batch, channels, height, width) of any size that the
model takes. Published weights come in through `wrap(srattn.create_model(name, pretrained=True))`.
"""

# The library may be absent where types are checked, and its own types are looser than its use.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportPrivateImportUsage=false
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from srattn.errors import SrattnError, missing_extra, nearest
from srattn.models import build_model
from srattn.models.backbone import Backbone
from srattn.models.features import PyramidFeatures, resolve_indices
from srattn.models.registry import model_options

try:
    import transformers as hf
    from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
    from transformers.modeling_outputs import (
        BackboneOutput,
        BaseModelOutputWithPoolingAndNoAttention,
        ImageClassifierOutputWithNoAttention,
    )
    from transformers.utils import can_return_tuple
except ModuleNotFoundError as error:
    if error.name == "transformers":
        raise missing_extra("transformers", "transformers") from error
    raise

# Options of create_model that transformers states in words of its own.
_THEIRS = {"in_chans": "num_channels", "img_size": "image_size", "num_classes": "num_labels"}


class SrattnConfig(BackboneConfigMixin, hf.PreTrainedConfig):
    """A model of ours by name.

    Args:
        model: one of `srattn.list_models()`.
        image_size: int or (height, width), of learned positions; any size can still be given to the model.
        num_channels: of the images.
        options: further options of `srattn.create_model`, {"drop_path_rate": 0.1, ...}.
        norm_eps: {"block": ..., "reduction": ..., "patch": ...} of the weights' origin; the model's own by default.
        out_features, out_indices: the maps that a backbone returns, by name ("stage1", ...) or from 0; the last one by
            default, as everywhere in transformers.
        kwargs: what every configuration of transformers takes; `num_labels` or `id2label` give the classes (2 by its
            default).

    Raises:
        SrattnError: an unknown model or option, with the nearest match.
    """

    model_type = "srattn"

    def __init__(
        self,
        model: str = "pvt_v2_b0",
        image_size: int | Sequence[int] | None = None,
        num_channels: int = 3,
        options: Mapping[str, Any] | None = None,
        norm_eps: Mapping[str, float] | None = None,
        out_features: list[str] | None = None,
        out_indices: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        known = model_options(model)
        self.options = {option: _plain(value) for option, value in (options or {}).items()}
        for option in self.options:
            if option in _THEIRS:
                raise SrattnError(f"{option} is given as {_THEIRS[option]}, beside the options")
            if option not in known:
                raise SrattnError(
                    f"{model} has no option {option!r}{nearest(option, known)}; options are {', '.join(known)}"
                )
        size = known["img_size"] if image_size is None else image_size
        self.model = model
        self.image_size = list(size) if isinstance(size, Sequence) else size
        self.num_channels = num_channels
        self.norm_eps = None if norm_eps is None else dict(norm_eps)
        self.hidden_sizes = list((known | self.options)["embed_dims"])
        self.stage_names = [f"stage{i + 1}" for i in range(len(self.hidden_sizes))]
        indices = None if out_indices is None else list(out_indices)
        self.set_output_features_output_indices(out_features=out_features, out_indices=indices)
        for derived in ("stage_names", "hidden_sizes"):  # they follow from the rest, whatever a saved file says
            kwargs.pop(derived, None)
        super().__init__(**kwargs)

    def build(self, features_only: bool = False, num_classes: int = 0) -> Backbone:
        """The model of this configuration; with `features_only`, the stages up to the last map asked for."""
        size = tuple(self.image_size) if isinstance(self.image_size, list) else self.image_size
        options = {**self.options, "in_chans": self.num_channels, "img_size": size}
        if features_only:
            built = build_model(self.model, features_only=True, out_indices=self.out_indices, **options).model
        else:
            built = build_model(self.model, num_classes=num_classes, **options)
        if self.norm_eps is not None:
            built.set_norm_eps(**self.norm_eps)
        return built

    @classmethod
    def of(cls, model: Backbone | PyramidFeatures, **kwargs: Any) -> SrattnConfig:
        """The configuration of a model of ours, its epsilons and its edge policy included."""
        backbone = model.model if isinstance(model, PyramidFeatures) else model
        options = {key: value for key, value in backbone.config.items() if key not in ("name", *_THEIRS)}
        if isinstance(model, PyramidFeatures):
            kwargs.setdefault("out_indices", model.out_indices)
        elif backbone.num_classes and "id2label" not in kwargs:
            kwargs.setdefault("num_labels", backbone.num_classes)
        return cls(
            model=backbone.config["name"],
            image_size=backbone.config["img_size"],
            num_channels=backbone.in_chans,
            options=copy.deepcopy(options),
            norm_eps=backbone.norm_eps,
            **kwargs,
        )


class SrattnPreTrainedModel(hf.PreTrainedModel):
    """What transformers asks of every model: where the weights are, fresh ones, gradient checkpointing."""

    config_class = SrattnConfig
    config: SrattnConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    model: Backbone

    def _adopt(self, model: Backbone) -> None:
        """Takes `model` in. Its weights are fresh, or the user's, and transformers is to leave them alone."""
        self.model = model
        for _, tensor in _tensors(model):
            if not tensor.is_meta:
                _set(tensor)
        self.post_init()

    def _fresh(self) -> Backbone:
        """A model as `_adopt` took it in, with fresh weights."""
        raise NotImplementedError

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Gives all that a checkpoint lacks the values that a model built by name has, when first asked for some."""
        lacking = {name: tensor for name, tensor in _tensors(self.model) if not _is_set(tensor)}
        if lacking:
            fresh = dict(_tensors(self._fresh()))
            for name, tensor in lacking.items():
                tensor.copy_(fresh[name])
                _set(tensor)

    @property
    def gradient_checkpointing(self) -> bool:
        return any(stage.grad_checkpointing for stage in self.model.iter_stages())

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        self.model.set_grad_checkpointing(enable)


class SrattnModel(SrattnPreTrainedModel):
    """The features alone: what the last stage leaves, and their mean (or the class token) for a classifier."""

    def __init__(self, config: SrattnConfig, model: Backbone | None = None) -> None:
        super().__init__(config)
        # The last layer of a classifier's checkpoint.
        self._keys_to_ignore_on_load_unexpected = [r"^(model\.)?head\."]
        self._adopt(self._fresh() if model is None else model)

    def _fresh(self) -> Backbone:
        return self.config.build()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        last, maps = _features(self, pixel_values, output_hidden_states, output_attentions)
        pooled = self.model.forward_head(last, pre_logits=True)
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=last, pooler_output=pooled, hidden_states=maps
        )


class SrattnForImageClassification(SrattnPreTrainedModel):
    """The model with its classifier of `config.num_labels` classes."""

    def __init__(self, config: SrattnConfig, model: Backbone | None = None) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self._adopt(self._fresh() if model is None else model)

    def _fresh(self) -> Backbone:
        return self.config.build(num_classes=self.config.num_labels or 0)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> ImageClassifierOutputWithNoAttention:
        """`labels` are (batch,) class indices, or what `config.problem_type` says; with them a loss is returned."""
        last, maps = _features(self, pixel_values, output_hidden_states, output_attentions)
        logits = self.model.forward_head(last)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=maps)


class SrattnBackbone(BackboneMixin, SrattnPreTrainedModel):
    """The pyramid of feature maps that heads of transformers build on.

    Stages after the last map asked for are not built, so every parameter is used.
    """

    has_attentions = False

    def __init__(self, config: SrattnConfig, model: Backbone | None = None) -> None:
        super().__init__(config)
        self.num_features = list(config.hidden_sizes)
        model = self._fresh() if model is None else model
        # What the checkpoint of a whole model, or of a deeper pyramid, holds beside these stages.
        beyond = "|".join(f"stages.{i}" for i in range(len(model.stages), len(self.num_features)))
        self._keys_to_ignore_on_load_unexpected = [
            rf"^(model\.)?({beyond or 'head'}|head|norm|class_token|class_position|fc)(\.|$)"
        ]
        self._adopt(model)

    def _fresh(self) -> Backbone:
        return self.config.build(features_only=True)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BackboneOutput:
        """The maps of `out_indices`, each (batch, channels, height / stride, width / stride)."""
        _refuse_attentions(output_attentions or self.config.output_attentions)
        built = len(self.model.stages)
        wanted = resolve_indices(self.out_indices, len(self.stage_names))
        if max(wanted) >= built:
            raise SrattnError(
                f"{self.stage_names[max(wanted)]} was not built, only {built} stages: "
                "say out_indices or out_features in the configuration"
            )
        wants_all = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        indices = list(range(built)) if wants_all else wanted
        maps = self.model.forward_intermediates(pixel_values, indices=indices, intermediates_only=True)
        chosen = tuple(feature for index, feature in zip(indices, maps, strict=True) if index in wanted)
        return BackboneOutput(feature_maps=chosen, hidden_states=tuple(maps) if wants_all else None)


def wrap(model: Backbone | PyramidFeatures, **kwargs: Any) -> SrattnPreTrainedModel:
    """A model of `srattn.create_model` as transformers takes it, with the same weights (not a copy).

    A pyramid (`features_only`) becomes a `SrattnBackbone`, a model with a classifier a `SrattnForImageClassification`,
    one without (num_classes=0) a `SrattnModel`. `kwargs` go to the configuration: `id2label`, `label2id`, ...
    """
    config = SrattnConfig.of(model, **kwargs)
    if isinstance(model, PyramidFeatures):
        return SrattnBackbone(config, model.model)
    if model.num_classes != (config.num_labels if model.num_classes else 0):
        raise SrattnError(f"the model has {model.num_classes} classes, {config.num_labels} are named")
    return SrattnForImageClassification(config, model) if model.num_classes else SrattnModel(config, model)


def _plain(value: Any) -> Any:
    """Tuples as lists, so that a configuration equals itself after JSON."""
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _set(tensor: Tensor) -> None:
    """Marks a tensor, in the way of transformers, as one that holds its values already."""
    tensor._is_hf_initialized = True  # type: ignore[attr-defined]


def _is_set(tensor: Tensor) -> bool:
    return getattr(tensor, "_is_hf_initialized", False)


def _features(
    owner: SrattnPreTrainedModel, pixel_values: Tensor, hidden_states: bool | None, attentions: bool | None
) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """The final features, and the maps of all stages where they are wanted."""
    config: Any = owner.config
    _refuse_attentions(attentions or config.output_attentions)
    if config.output_hidden_states if hidden_states is None else hidden_states:
        final, maps = owner.model.forward_intermediates(pixel_values)
        return final, tuple(maps)
    return owner.model.forward_features(pixel_values), None


def _refuse_attentions(wanted: bool | None) -> None:
    if wanted:
        raise SrattnError("attention weights are not kept while a model runs; srattn.explain computes them")


hf.AutoConfig.register(SrattnConfig.model_type, SrattnConfig, exist_ok=True)
hf.AutoModel.register(SrattnConfig, SrattnModel, exist_ok=True)
hf.AutoBackbone.register(SrattnConfig, SrattnBackbone, exist_ok=True)
hf.AutoModelForImageClassification.register(SrattnConfig, SrattnForImageClassification, exist_ok=True)
