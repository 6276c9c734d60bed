"""What detectors and segmenters build on, for every name of the registry, in narrow networks."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn

import snzoo
from snzoo.errors import CheckpointError, SnzooError
from snzoo.models.architectures import ARCHITECTURES
from snzoo.models.features import FeatureExtractor
from snzoo.nn.switchnorm import SwitchNorm

# One name for each network: several entries of the zoo differ by their weights only.
ENTRIES = map(snzoo.get_info, reversed(snzoo.list_models()))
UNIQUE = list({(e.architecture, repr(e.arguments)): e.name for e in ENTRIES}.values())
NAMES = [name for name in UNIQUE if not snzoo.get_info(name).is_face]
# The face networks of 18 layers, and the one with hard gates; the others differ by their depth.
FACES = [name for name in UNIQUE if name.startswith("face_resnet18") or "argmax" in name]


def mark_deep(names):
    """Return the names; those of deep networks, whose code is that of others, are slow tests."""
    deep = re.compile(r"resnet(100|101|152)")
    return [pytest.param(n, marks=pytest.mark.slow) if deep.search(n) else n for n in names]


def create(name, **arguments):
    return snzoo.create_model(name, width=8, **arguments)


@pytest.mark.parametrize("name", mark_deep(FACES))
def test_every_face_network_is_a_backbone(name):
    model = create(name).eval()
    x = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        last = model.forward_features(x)
        assert torch.equal(model(x), model.forward_head(last))
        extractor = create(name, features_only=True, out_indices=(0, 1, 2, 3, 4)).eval()
        extractor.load_state_dict(
            {key: v for key, v in model.state_dict().items() if not key.startswith("output_")}
        )
        maps = extractor(x)
        assert torch.equal(maps[-1], last)
        assert extractor.feature_info.channels() == [8, 8, 16, 32, 64]
        assert extractor.feature_info.reduction() == [1, 2, 4, 8, 16]
        assert [tuple(found.shape[1:]) for found in maps] == [
            (8, 112, 112),
            (8, 56, 56),
            (16, 28, 28),
            (32, 14, 14),
            (64, 7, 7),
        ]
        outputs = {}
        for module in extractor.feature_info.module_name():
            model.get_submodule(module).register_forward_hook(
                lambda _, __, output, module=module: outputs.setdefault(module, output)
            )
        model(x)
        assert all(map(torch.equal, outputs.values(), maps))
        assert extractor(torch.randn(1, 3, 65, 97))[-1].shape == (1, 64, 5, 7)
    assert model.num_features == 64 and model.num_classes == 0
    assert create(name, in_chans=1)(torch.randn(2, 1, 112, 112)).shape == (2, 512)


@pytest.mark.parametrize("name", mark_deep(FACES))
def test_every_parameter_of_a_face_network_is_in_one_group(name):
    model = create(name)
    groups = snzoo.parameter_groups(model, lr=1.0, weight_decay=0.1, layer_decay=0.5)
    found = {
        id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(found) == sum(len(group["params"]) for group in groups) == len(trained)
    blocks = sum(map(len, (model.layer1, model.layer2, model.layer3, model.layer4)))
    assert found[id(model.output_layer[3].weight)] == (1.0, 0.1)
    assert found[id(model.output_layer[0].weight)] == (1.0, 0.0)
    assert found[id(model.layer1[0].conv1.weight)] == (0.5**blocks, 0.1)
    assert found[id(model.conv1.weight)] == (0.5 ** (blocks + 1), 0.1)
    assert found[id(model.prelu.weight)] == (0.5 ** (blocks + 1), 0.0)


@pytest.mark.parametrize("name", mark_deep(NAMES))
def test_every_name_is_a_backbone(name):
    model = create(name, num_classes=7).eval()
    x = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        last = model.forward_features(x)
        assert torch.equal(model(x), model.forward_head(last))
        pooled = model.forward_head(last, pre_logits=True)
        assert torch.equal(model.get_classifier()(pooled), model(x))

        extractor = create(name, features_only=True, out_indices=(0, 1, 2, 3, 4)).eval()
        extractor.load_state_dict(
            {key: value for key, value in model.state_dict().items() if key[:3] != "fc."}
        )
        maps = extractor(x)
        assert torch.equal(maps[-1], last)
        info = extractor.feature_info
        assert [found.shape[1] for found in maps] == info.channels()
        # The sides after the max pool, of which the ceil pool drops the last odd one.
        down, across = (16, 24) if model.maxpool.ceil_mode else (17, 25)
        sizes = [(33, 49)]
        sizes += [(-(-down * 4 // s), -(-across * 4 // s)) for s in info.reduction()[1:]]
        assert [tuple(found.shape[2:]) for found in maps] == sizes
        assert extractor.feature_info.info == model.feature_info
        assert model.num_features == model.get_classifier().in_features == last.shape[1]

        model.reset_classifier(4)
        assert model.num_classes == 4 and model(x).shape == (2, 4)
        model.reset_classifier(0)
        assert torch.equal(model(x), pooled)
    assert create(name, num_classes=0).num_classes == 0
    assert create(name, in_chans=5)(torch.randn(2, 5, 32, 32)).ndim == 2


@pytest.mark.parametrize("name", mark_deep(NAMES))
def test_every_name_keeps_its_resolution_where_it_is_asked_to(name):
    for stride in (8, 16):
        model = create(name, features_only=True, output_stride=stride)
        assert max(model.feature_info.reduction()) == stride
        maps = model.eval()(torch.randn(1, 3, 64, 64))
        assert [64 // found.shape[2] for found in maps] == model.feature_info.reduction()


@pytest.mark.parametrize("name", mark_deep(n for n in [*NAMES, *FACES] if "argmax" not in n))
def test_every_name_freezes_and_stays_frozen_through_train(name):
    size = 112 if name in FACES else 64
    for model in (create(name), create(name, features_only=True)):
        for buffer in model.buffers():
            buffer.fill_(1)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        model.freeze(2)
        model.train()
        out = model(torch.randn(2, 3, size, size))
        (out if isinstance(out, torch.Tensor) else out[-1]).square().mean().backward()
        for key, value in model.state_dict(keep_vars=True).items():
            stem = ("conv1", f"{model.prefix}1", "prelu")
            frozen = key.startswith((*stem, "layer1", "layer2"))
            if isinstance(value, nn.Parameter):
                assert value.requires_grad != frozen and (value.grad is None) == frozen, key
            elif frozen:
                assert torch.equal(value, before[key]), key
            elif "running_mean" in key:
                assert not torch.equal(value, before[key]), key
        model.freeze(None)
        assert all(p.requires_grad for p in model.parameters())
        assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", mark_deep(NAMES))
def test_every_parameter_is_in_one_group_with_its_rate_and_decay(name):
    model = create(name)
    gates = {"gate_lr": 0.5} if isinstance(model.norm(1), SwitchNorm) else {}
    groups = snzoo.parameter_groups(model, lr=1.0, weight_decay=0.1, layer_decay=0.5, **gates)
    found = {
        id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]
    }
    assert len(found) == sum(len(group["params"]) for group in groups) == len([*model.parameters()])
    layers = list(model.layers())
    assert len(layers) == 1 + sum(
        map(len, (model.layer1, model.layer2, model.layer3, model.layer4))
    ) + (ARCHITECTURES[snzoo.get_info(name).architecture].version == 2)
    assert found[id(model.fc.weight)] == (1.0, 0.1) and found[id(model.fc.bias)] == (1.0, 0.0)
    assert found[id(model.conv1.weight)] == (0.5 ** len(layers), 0.1)
    assert found[id(model.layer1[0].conv1.weight)] == (0.5 ** (len(layers) - 1), 0.1)
    norm = model.layer1[0].norm(1)
    assert found[id(norm.weight)] == (0.5 ** (len(layers) - 1), 0.0)
    if isinstance(norm, SwitchNorm):
        assert found[id(norm.var_weight)] == (0.5 ** len(layers), 0.0)


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize(
    "name, options",
    [
        ("resnet18v1_bn", {}),
        ("resnet18v2_bn", {}),
        ("resnet50v1_bn", {}),
        ("resnet50v2_bn", {}),
        ("resnet50v1_bn", {"stride_on": "1x1"}),
        ("resnet50v1_bn", {"stride_on": "last_unit"}),
        ("resnet50v1_bn", {"norm_after_add": True}),
    ],
)
def test_a_dilated_network_computes_what_the_strided_one_does_and_more_between(
    name, options, stride
):
    """Batch norm in evaluation mode normalizes each position alone, so the maps are equal."""
    strided = create(name, features_only=True, **options).double()
    with torch.no_grad():
        for _ in range(20):  # running statistics that keep the maps away from zero
            strided(torch.randn(2, 3, 75, 110, dtype=torch.float64))
    strided.eval()
    dilated = create(name, features_only=True, output_stride=stride, **options).double().eval()
    dilated.load_state_dict(strided.state_dict())
    x = torch.randn(2, 3, 75, 110, dtype=torch.float64)
    with torch.no_grad():
        strides = strided.feature_info.reduction(), dilated.feature_info.reduction()
        for coarse, fine, old, new in zip(strided(x), dilated(x), *strides, strict=True):
            step = old // new
            assert (coarse != 0).double().mean() > 0.05
            assert torch.allclose(fine[:, :, ::step, ::step], coarse, rtol=1e-10, atol=1e-10)


def test_a_feature_extractor_drops_the_stages_that_it_does_not_need():
    model = create("resnet18v2_sn", features_only=True, out_indices=(1, 3))
    assert (
        not hasattr(model, "layer4") and not hasattr(model, "sn_out") and hasattr(model, "layer3")
    )
    assert model.feature_info.channels() == [8, 32] and model.feature_info.reduction() == [4, 16]
    assert [found.shape[1] for found in model(torch.randn(1, 3, 64, 64))] == [8, 32]
    model.freeze(4)
    assert not any(p.requires_grad for p in model.parameters())


def test_a_feature_extractor_takes_the_weights_of_a_classifier_or_its_own_and_no_others(tmp_path):
    source = create("resnet18v1_sn", num_classes=3)
    state, file = source.state_dict(), tmp_path / "x.pth"
    options = {"weights": file, "features_only": True, "out_indices": (1, 3)}

    def load(state):
        torch.save(state, file)
        return create("resnet18v1_sn", **options)

    model = load(state)
    assert torch.equal(model.layer3[0].conv1.weight, source.layer3[0].conv1.weight)
    options["in_chans"] = 1
    for some in (state, model.state_dict()):
        gray = load(some)
        assert torch.allclose(gray.conv1.weight, source.conv1.weight.sum(1, keepdim=True))
    del options["in_chans"]
    again = load(model.state_dict())
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    load({key: value for key, value in state.items() if key[:3] != "fc."})
    for key in ("layer4.0.conv1.weight", "layer1.0.conv1.weight"):
        with pytest.raises(CheckpointError, match=f"missing: {key}"):
            load({k: v for k, v in state.items() if k != key})
    with pytest.raises(CheckpointError, match="unexpected: stray"):
        load(state | {"stray": torch.zeros(1)})


def test_the_zoos_weights_give_the_same_maps():
    demo = snzoo.create_model("resnet18v1_sn_clothing", pretrained=True, features_only=True)
    x = torch.randn(1, 3, 64, 64)
    whole = snzoo.create_model("resnet18v1_sn_clothing", pretrained=True).eval()
    assert torch.equal(demo.eval()(x)[-1], whole.forward_features(x))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"features_only": True, "out_indices": (2, 1)}, "out_indices must be increasing"),
        ({"features_only": True, "out_indices": (1, 1)}, "out_indices must be increasing"),
        ({"features_only": True, "out_indices": (5,)}, "out_indices must be increasing"),
        ({"features_only": True, "out_indices": ()}, "out_indices must be increasing"),
        ({"features_only": True, "out_indices": 6}, "out_indices must be increasing"),
        ({"features_only": True, "out_indices": (-6,)}, "out_indices must be increasing"),
        ({"out_indices": (1, 2)}, "out_indices needs features_only=True"),
        ({"output_stride": 4}, "output_stride must be 8, 16 or 32"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(SnzooError, match=message):
        snzoo.create_model("resnet18v1_sn", **arguments)


def test_what_is_frozen_stays_so_in_copies_and_stands_still_for_an_optimizer():
    model = create("resnet18v1_sn", num_classes=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=0.1)
    for frozen in (None, 1, 1):
        model.freeze(frozen)
        before = model.conv1.weight.clone()
        model(torch.randn(2, 3, 64, 64)).sum().backward()
        model.freeze(frozen)  # gradients that were there already are taken away
        optimizer.step()
        assert torch.equal(model.conv1.weight, before) == (frozen is not None)
    clone = pickle.loads(pickle.dumps(copy.deepcopy(model))).train()
    assert not clone.layer1.training and clone.layer2.training and clone.frozen_stages == 1


@pytest.mark.parametrize("indices, taken", [((-2, -1), [3, 4]), (2, [3, 4]), (5, [0, 1, 2, 3, 4])])
def test_maps_are_counted_as_in_timm(indices, taken):
    model = create("resnet18v1_sn", features_only=True, out_indices=indices, num_classes=5)
    info, expected = model.feature_info, [8, 8, 16, 32, 64]
    assert info.out_indices == model.out_indices == tuple(taken)
    assert info.channels() == [expected[i] for i in taken] and info.channels(1) == 8
    assert info.get_dicts(idx=-1) == {"index": -1, **info[4]}
    assert [d["index"] for d in info.get_dicts(["num_chs"])] == taken and len(info) == 5
    assert info.module_name((0, 4)) == ["relu1", "layer4"]


@pytest.mark.parametrize("classes", [-3, "7", None, 1.0, True])
def test_a_head_of_no_size_is_refused(classes):
    with pytest.raises(SnzooError, match="num_classes must be a whole number from 0"):
        create("resnet18v1_sn").reset_classifier(classes)


@pytest.mark.parametrize("stages", [-1, 5, 1.0, True, "1"])
def test_other_numbers_of_stages_are_refused(stages):
    with pytest.raises(SnzooError, match=r"freeze takes 0 \(the stem\) to 4 stages"):
        create("resnet18v1_sn").freeze(stages)


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("resnet18v1_sn", {"layer_decay": 0.0}, "layer_decay must be above 0"),
        ("resnet18v1_sn", {"gate_lr": float("nan")}, "gate_lr must be a number from 0, got nan"),
        ("resnet18v1_sn", {"lr": None}, "lr must be a number from 0, got None"),
        ("resnet18v1_sn", {"lr": "0.1"}, "lr must be a number from 0, got '0.1'"),
        ("resnet18v1_sn", {"lr": torch.tensor(0.1)}, "lr must be a number from 0"),
        ("resnet18v1_sn", {"weight_decay": -1}, "weight_decay must be a number from 0"),
        ("resnet18v1_bn", {"gate_lr": 0.1}, "gate_lr needs Switchable Normalization"),
    ],
)
def test_rates_that_make_no_sense_are_refused(name, arguments, message):
    with pytest.raises(SnzooError, match=message):
        snzoo.parameter_groups(create(name), **{"lr": 1.0, **arguments})


def test_what_has_no_layers_is_refused():
    with pytest.raises(SnzooError, match="takes a model, not its parameters"):
        snzoo.parameter_groups(create("resnet18v1_sn").parameters(), lr=1.0)
    with pytest.raises(SnzooError, match="layer_decay needs a backbone"):
        snzoo.parameter_groups(nn.Linear(2, 2), lr=1.0, layer_decay=0.5)


def test_what_is_shared_or_frozen_is_grouped_once_or_not_at_all():
    model = create("resnet18v1_sn")
    model.freeze(0)
    both = nn.ModuleList([model, model.fc])
    groups = snzoo.parameter_groups(both, lr=0.1)
    parameters = [p for group in groups for p in group["params"]]
    assert len(parameters) == len([p for p in model.parameters() if p.requires_grad])
    torch.optim.SGD(groups, momentum=0.9)  # takes them, and would refuse a parameter twice


@pytest.mark.parametrize("norm", ["sn", "bn"])
def test_frozen_statistics_stay_frozen_in_training_mode(norm):
    model = snzoo.create_model(f"resnet18v1_{norm}", width=8)
    model.freeze_statistics()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model.train()(torch.randn(2, 3, 64, 64))
    assert model.layer1[0].conv1.training and not model.layer1[0].norm(1).training
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    for copied in (copy.deepcopy(model), FeatureExtractor(model)):
        assert not copied.train().layer1[0].norm(1).training
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(snzoo.nn.convert_sync_switchnorm(model))
    assert not synchronized.train().layer1[0].norm(1).training
    model.freeze_statistics(False)
    assert model.layer1[0].norm(1).training and all(p.requires_grad for p in model.parameters())
