"""Our models inside transformers: its Auto classes, its files, its heads. Nothing here asks a network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import srattn
from srattn import SrattnError
from tests.models.small import small_numbers

hf = pytest.importorskip("transformers", "5.1", reason="needs the extra: pip install 'srattn[transformers]'")
ours = pytest.importorskip("srattn.integrations.transformers")

# A kind of architecture each.
NAMES = [
    "pvt_tiny",
    "pvt_v2_b0",
    "pvt_v2_b2_li",
    "twins_svt_small",
    "cmt_ti",
    "p2t_tiny",
    "shunted_tiny",
    "cvt_13",
    "mvitv2_tiny",
]
every_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    hf.utils.logging.disable_progress_bar()


def narrow(name: str) -> dict[str, Any]:
    return {key: value for key, value in small_numbers(name).items() if key != "num_classes"}


def config(name: str = "pvt_v2_b0", **options: Any) -> Any:
    return ours.SrattnConfig(model=name, options=narrow(name), image_size=64, **options)


def pyramid_config(name: str = "pvt_v2_b0") -> Any:
    return config(name, out_indices=(0, 1, 2, 3))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 96)


@every_name
def test_auto_backbone(name: str, images: torch.Tensor) -> None:
    backbone = hf.AutoBackbone.from_config(config(name, out_features=["stage2", "stage3"])).eval()
    assert isinstance(backbone, ours.SrattnBackbone)
    assert backbone.channels == [16, 20] and backbone.out_indices == [1, 2]
    maps = backbone(images).feature_maps
    assert [tuple(m.shape) for m in maps] == [(2, 16, 8, 12), (2, 20, 4, 6)]
    expected = backbone.model.forward_intermediates(images, indices=[1, 2], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
    sum(m.square().sum() for m in backbone.train()(images).feature_maps).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []
    hidden = backbone(images, output_hidden_states=True).hidden_states
    assert len(hidden) == 3 and hidden[0].shape[1] == 8
    assert isinstance(backbone(images, return_dict=False), tuple)
    with pytest.raises(SrattnError, match="stage4 was not built, only 3 stages: say out_indices"):
        backbone.out_indices = [3]
        backbone(images)


@every_name
def test_classifier_with_a_loss(name: str, images: torch.Tensor) -> None:
    model = hf.AutoModelForImageClassification.from_config(config(name, num_labels=5)).eval()
    labels = torch.tensor([4, 0])
    result = model(images, labels=labels)
    assert torch.equal(result.logits, model.model(images)) and result.logits.shape == (2, 5)
    assert torch.allclose(result.loss, torch.nn.functional.cross_entropy(result.logits, labels))
    assert result.hidden_states is None
    assert len(model(images, output_hidden_states=True).hidden_states) == 4
    with pytest.raises(SrattnError, match=r"srattn\.explain"):
        model(images, output_attentions=True)


def test_bare_model(images: torch.Tensor) -> None:
    model = hf.AutoModel.from_config(config()).eval()
    result = model(images)
    assert result.last_hidden_state.shape == (2, 32, 2, 3)
    assert torch.allclose(result.pooler_output, result.last_hidden_state.mean((2, 3)))


@every_name
def test_save_and_load(name: str, images: torch.Tensor, tmp_path: Path) -> None:
    model = hf.AutoModelForImageClassification.from_config(config(name, id2label={0: "cat", 1: "dog", 2: "cow"})).eval()
    model.save_pretrained(tmp_path)
    loaded, seen = hf.AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not seen["missing_keys"] and not seen["unexpected_keys"]
    assert loaded.config.id2label == {0: "cat", 1: "dog", 2: "cow"}
    assert torch.equal(loaded(images).logits, model(images).logits)

    backbone, seen = ours.SrattnBackbone.from_pretrained(tmp_path, out_indices=[0, 2], output_loading_info=True)
    assert not seen["missing_keys"] and not seen["unexpected_keys"]
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())
    assert backbone.channels == [8, 20]
    backbone.save_pretrained(tmp_path / "backbone")
    again = ours.SrattnBackbone.from_pretrained(tmp_path / "backbone")
    for a, b in zip(again(images).feature_maps, backbone(images).feature_maps, strict=True):
        assert torch.equal(a, b)


def test_what_a_checkpoint_lacks_is_fresh(tmp_path: Path) -> None:
    hf.AutoModelForImageClassification.from_config(config(num_labels=3)).save_pretrained(tmp_path)
    loaded, seen = ours.SrattnForImageClassification.from_pretrained(
        tmp_path, num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {key[0] if isinstance(key, tuple) else key for key in seen["mismatched_keys"]} == {
        "model.head.weight",
        "model.head.bias",
    }
    assert loaded.model.head.weight.shape == (7, 32)
    assert 0.005 < loaded.model.head.weight.std() < 0.05 and torch.equal(loaded.model.head.bias, torch.zeros(7))


def test_fresh_weights_are_those_of_a_model_by_name() -> None:
    torch.manual_seed(3)
    expected = srattn.create_model("pvt_v2_b0", num_classes=5, **narrow("pvt_v2_b0"))
    torch.manual_seed(3)
    model = hf.AutoModelForImageClassification.from_config(config(num_labels=5))
    for a, b in zip(model.model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)


def test_wrapped_models_keep_weights_epsilons_and_edge(images: torch.Tensor, tmp_path: Path) -> None:
    classifier = srattn.create_model("pvt_tiny", num_classes=4, img_size=(64, 96), **narrow("pvt_tiny")).eval()
    classifier.set_norm_eps(block=1e-3, reduction=1e-3, patch=1e-3)
    classifier.set_edge("floor")
    odd = torch.randn(1, 3, 75, 50)
    with torch.no_grad():
        wrapped = ours.wrap(classifier).eval()
        assert wrapped.model is classifier
        wrapped.save_pretrained(tmp_path / "classifier")
        loaded = hf.AutoModelForImageClassification.from_pretrained(tmp_path / "classifier")
        assert loaded.model.norm_eps == classifier.norm_eps and loaded.model.edge == "floor"
        assert torch.allclose(loaded(odd).logits, classifier(odd), atol=1e-6)
        assert loaded.model.config["img_size"] == [64, 96]

        pyramid = srattn.create_model("pvt_v2_b0", features_only=True, out_indices=(1, 2), **narrow("pvt_v2_b0")).eval()
        backbone = ours.wrap(pyramid)
        assert backbone.channels == pyramid.feature_info.channels()
        for a, b in zip(backbone(images).feature_maps, pyramid(images), strict=True):
            assert torch.equal(a, b)
        assert isinstance(
            ours.wrap(srattn.create_model("pvt_v2_b0", num_classes=0, **narrow("pvt_v2_b0"))), ours.SrattnModel
        )
    with pytest.raises(SrattnError, match="the model has 4 classes, 2 are named"):
        ours.wrap(classifier, id2label={0: "cat", 1: "dog"})


def test_configuration_is_plain_json(tmp_path: Path) -> None:
    asked = pyramid_config()
    asked.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "srattn" and saved["model"] == "pvt_v2_b0"
    loaded = hf.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, ours.SrattnConfig)
    assert {**loaded.to_dict(), "_name_or_path": ""} == {**asked.to_dict(), "_name_or_path": ""}
    assert ours.SrattnConfig().out_features == ["stage4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "pvt_v2_b9"}, "no model 'pvt_v2_b9'; did you mean"),
        ({"options": {"sr_ratio": (1, 1, 1, 1)}}, "no option 'sr_ratio'; did you mean 'sr_ratios'"),
        ({"options": {"num_classes": 3}}, "num_classes is given as num_labels"),
    ],
)
def test_wrong_configurations(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SrattnError, match=message):
        ours.SrattnConfig(**arguments)


def test_gradient_checkpointing(images: torch.Tensor) -> None:
    model = hf.AutoModelForImageClassification.from_config(config(num_labels=5)).train()
    model(images).logits.square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
    assert model.gradient_checkpointing and all(s.grad_checkpointing for s in model.model.stages)
    model(images).logits.square().sum().backward()
    assert all(torch.allclose(p.grad, g, atol=1e-6) for p, g in zip(model.parameters(), expected, strict=True))


@pytest.mark.parametrize("name", ["pvt_v2_b0", "twins_svt_small"])
def test_upernet_trains_on_our_pyramid(name: str, images: torch.Tensor, tmp_path: Path) -> None:
    head = hf.UperNetConfig(
        backbone_config=pyramid_config(name),
        hidden_size=16,
        auxiliary_channels=8,
        auxiliary_in_channels=20,
        num_labels=4,
    )
    model = hf.UperNetForSemanticSegmentation(head)
    result = model.train()(images, labels=torch.randint(0, 4, (2, 64, 96)))
    assert result.logits.shape == (2, 4, 64, 96)
    result.loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    model.eval().save_pretrained(tmp_path)
    loaded, seen = hf.UperNetForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not seen["missing_keys"] and not seen["unexpected_keys"]
    assert loaded.config.backbone_config.model == name
    assert torch.equal(loaded(images).logits, model(images).logits)


def test_rt_detr_detects_on_our_pyramid(images: torch.Tensor) -> None:
    model = hf.RTDetrForObjectDetection(
        hf.RTDetrConfig(
            backbone_config=config(out_indices=(1, 2, 3)),
            encoder_in_channels=[16, 20, 32],
            decoder_in_channels=[32, 32, 32],
            encoder_hidden_dim=32,
            d_model=32,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            encoder_layers=1,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            num_queries=10,
            num_denoising=0,
            num_labels=3,
        )
    )
    result = model(images)
    assert result.logits.shape == (2, 10, 3) and result.pred_boxes.shape == (2, 10, 4)
    assert ((result.pred_boxes >= 0) & (result.pred_boxes <= 1)).all()
    (result.logits.square().sum() + result.pred_boxes.square().sum()).backward()
    stage = model.model.backbone.model.model.stages[0]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in stage.patch_embed.parameters())


def test_detr_detects_on_our_last_map(images: torch.Tensor) -> None:
    model = hf.DetrForObjectDetection(
        hf.DetrConfig(
            backbone_config=config(out_indices=(3,)),
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            num_queries=5,
            num_labels=3,
        )
    ).eval()
    mask = torch.ones(2, 64, 96, dtype=torch.long)
    assert model(images, pixel_mask=mask).pred_boxes.shape == (2, 5, 4)


def test_nothing_is_registered_unasked() -> None:
    code = """
import sys, srattn, srattn.models, srattn.convert, srattn.tasks
assert "transformers" not in sys.modules
from transformers import AutoConfig
try:
    AutoConfig.for_model("srattn")
except ValueError:
    import srattn.integrations.transformers
    print(type(AutoConfig.for_model("srattn")).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "SrattnConfig", done.stderr
