"""Detectors and segmenters learn made shapes: bright squares on noise."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.nn import BatchNorm2d
from torchvision.models.detection import FasterRCNN

import snzoo
from snzoo import tasks
from snzoo.data.pixels import normalize
from snzoo.errors import SnzooError
from snzoo.nn import SwitchNorm2d

SIDE = 96
# torchvision's own options: fewer proposals, to be quick.
FEW = {"rpn_post_nms_top_n_train": 64, "box_batch_size_per_image": 64}
DETECTOR = {"num_classes": 2, "min_size": SIDE, "max_size": SIDE, "frozen_stages": None, **FEW}


def squares(count, seed):
    """Images with values 0 to 1, boxes x1 y1 x2 y2, and masks of one square each."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.rand(count, 3, SIDE, SIDE, generator=generator)
    corners = torch.randint(0, SIDE - 40, (count, 2), generator=generator)
    boxes = torch.cat([corners, corners + 36], 1)
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.uint8)
    for image, mask, (x1, y1, x2, y2) in zip(images, masks, boxes.tolist(), strict=True):
        image[:, y1:y2, x1:x2] += 0.6
        mask[y1:y2, x1:x2] = 1
    return images, boxes.float(), masks


def backbone(name="resnet18v1_sn", **arguments):
    torch.manual_seed(0)
    return snzoo.create_model(name, width=16, features_only=True, **arguments)


def losses(model, step, steps=12):
    """The loss on the same images before and after some steps of SGD."""
    groups = snzoo.parameter_groups(model, lr=3e-4)
    optimizer = torch.optim.AdamW(groups)
    model.train()
    found = []
    for _ in range(steps):
        loss = step(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize(
    "make, name",
    [(tasks.faster_rcnn, "resnet18v2_bn"), (tasks.mask_rcnn, "resnet18v1_sn")],
)
@pytest.mark.slow
def test_a_detector_learns(make, name):
    model = make(backbone(name), **DETECTOR)
    images, boxes, masks = squares(2, seed=1)
    targets = [
        {"boxes": box[None], "labels": torch.tensor([1]), "masks": mask[None]}
        for box, mask in zip(boxes, masks, strict=True)
    ]
    found = losses(model, lambda m: sum(m(list(images), targets).values()))
    assert found[-1] < 0.7 * found[0]
    with torch.no_grad():
        (result, *_) = model.eval()(list(images))
    assert {"boxes", "labels", "scores"} <= result.keys()


@pytest.mark.parametrize("make", [tasks.deeplabv3, tasks.fcn])
@pytest.mark.parametrize(
    "name, out_indices, count",
    [
        ("resnet18v1_sn", (4,), 1),
        ("resnet18v1_sn", (3, 4), 2),
        ("resnet18v2_sn", (4,), 1),
        ("resnet18v1_bn", (4,), 2),
    ],
)
def test_a_segmenter_learns(make, name, out_indices, count):
    """From a single image, where all norms are SN."""
    model = make(backbone(name, output_stride=8, out_indices=out_indices), num_classes=2)
    kinds = {type(m) for m in model.modules() if isinstance(m, BatchNorm2d | SwitchNorm2d)}
    assert kinds == {SwitchNorm2d if name.endswith("sn") else BatchNorm2d}
    images, _, masks = squares(count, seed=2)

    def step(model):
        maps = model(images)
        assert maps.keys() == ({"out", "aux"} if len(out_indices) == 2 else {"out"})
        assert all(found.shape == (count, 2, SIDE, SIDE) for found in maps.values())
        return sum(F.cross_entropy(found, masks.long()) for found in maps.values())

    found = losses(model, step)
    assert found[-1] < 0.7 * found[0]


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("resnet50v1_sn", {"stride_on": "1x1"}),
        ("resnet50v1_bn", {"stride_on": "last_unit"}),
        ("resnet50v2_sn", {"using_bn": False}),
        ("resnet34v2_gn", {}),
    ],
)
def test_other_backbones_fit_too(name, arguments):
    model = tasks.faster_rcnn(backbone(name, **arguments), **DETECTOR).eval()
    dilated = backbone(name, output_stride=8, out_indices=(3, 4), **arguments)
    images, _, _ = squares(2, seed=3)
    with torch.no_grad():
        assert len(model(list(images))) == 2
        maps = tasks.deeplabv3(dilated, num_classes=5).eval()(images)
    assert {key: found.shape for key, found in maps.items()} == {
        "out": (2, 5, SIDE, SIDE),
        "aux": (2, 5, SIDE, SIDE),
    }


def test_a_step_by_the_default_rules_moves_all_but_what_is_frozen():
    model = tasks.faster_rcnn(backbone(), **DETECTOR | {"frozen_stages": 1})
    images, boxes, _ = squares(2, seed=4)
    targets = [{"boxes": box[None], "labels": torch.tensor([1])} for box in boxes]
    before = copy.deepcopy(model.backbone.body.state_dict())
    groups = snzoo.parameter_groups(model, lr=0.02)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    sum(model.train()(list(images), targets).values()).backward()
    optimizer.step()
    for key, value in model.backbone.body.state_dict().items():
        frozen = key.startswith(("conv1", "sn1", "layer1"))
        assert torch.equal(value, before[key]) == frozen, key


def test_the_rules_of_finetuning_are_the_defaults():
    model = tasks.faster_rcnn(backbone(), num_classes=2)
    assert isinstance(model, FasterRCNN)
    body = model.train().backbone.body
    assert body.frozen_stages == 1 and not body.layer1.training and body.layer2.training
    groups = snzoo.parameter_groups(model, lr=0.02)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in body.named_parameters():
        if name.startswith(("conv1", "sn1", "layer1")):
            assert id(parameter) not in decay
        else:
            assert decay[id(parameter)] == (1e-4 if "conv" in name or "downsample.0" in name else 0)


@pytest.mark.parametrize("name", ["resnet50v1_bn_msra", "resnet50v1_bn_torchvision"])
def test_a_detector_normalizes_as_its_weights_want_it(name):
    """BGR from 0 to 255 too: what the backbone sees is what evaluation shows it."""
    model = tasks.faster_rcnn(
        backbone(name), num_classes=2, frozen_stages=None, min_size=64, max_size=64
    ).eval()
    pixels = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    seen = []
    model.backbone.body.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(list(pixels / 255))
    expected = normalize(pixels, snzoo.get_info(name).preprocessing)
    assert torch.allclose(seen[0], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "make, arguments, message",
    [
        (tasks.faster_rcnn, {"out_indices": (3, 4)}, r"out_indices=\(1, 2, 3, 4\)"),
        (tasks.mask_rcnn, {"in_chans": 1}, "in_chans=3"),
        (tasks.fcn, {"output_stride": 8}, r"out_indices=\(4,\) or \(3, 4\)"),
        (tasks.deeplabv3, {"out_indices": (4,)}, "stride 32; create it with output_stride=8 or 16"),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused(make, arguments, message):
    with pytest.raises(SnzooError, match=message):
        make(backbone(**arguments), num_classes=2)


def test_a_classifier_is_no_backbone():
    with pytest.raises(SnzooError, match="features_only=True"):
        tasks.fcn(snzoo.create_model("resnet18v1_sn", width=8), num_classes=2)
