"""Files, folders, tags and hub names: what is read and refused; nothing runs or goes out unasked."""

from __future__ import annotations

import email.message
import io
import json
import os
import pickle
import re
import urllib.error
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import timm.models
import torch
import torchvision
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

from skipnets.errors import UserError
from skipnets.models import create_model
from skipnets.models.weights import PublishedInput, is_cached, load_weights

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """Any download that is not expected fails, and caches are empty."""

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def refused(source, words, name="resnet20"):
    with pytest.raises(UserError, match=words) as caught:
        create_model(name, weights=source)
    assert str(caught.value).startswith("weights")
    assert "\n" not in str(caught.value)


# Local files


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt", "th", "ckpt", "bin", "pth.tar", "npz", "PTH"])
def test_kinds_of_files(suffix, make, stirred, write, assert_same):
    tensors = stirred(make())
    model = make()
    load_weights(model, write(tensors, f"weights.{suffix}"))
    assert_same(model, tensors)


def test_the_old_format_of_torch_save(make, stirred, write, assert_same):
    tensors = stirred(make())
    model = make()
    load_weights(model, write(tensors, _use_new_zipfile_serialization=False))
    assert_same(model, tensors)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent.pth", r"^weights=absent.pth: there is no such file$"),
        ("imagenet21k", r"weights=imagenet21k: must be a torchvision tag"),
        ("https://example.org/a.pth", r"weights=https://example.org/a.pth: must be a torchvision tag"),
    ],
)
def test_no_such_source(name, words):
    refused(name, words)


def test_a_kind_that_holds_no_weights(tmp_path):
    path = tmp_path / "weights.onnx"
    path.write_bytes(b"x")
    refused(path, "weights.onnx is not a weights file")


GARBAGE = {
    "empty": b"",
    "text": b"hello world, this is not a checkpoint" * 9,
    "web page": b"<html>404 not found</html>",
    "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n",
    "zip start": b"PK\x03\x04" + bytes(99),
    "zeros": bytes(4096),
}


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "npz"])
@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_garbage(content, suffix, tmp_path):
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    refused(path, rf"weights\.{suffix} is not a complete ")


@pytest.mark.parametrize("kept", [0.001, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("suffix", ["pth", "th", "safetensors", "npz"])
def test_truncated_files(suffix, kept, write):
    old = {"_use_new_zipfile_serialization": False} if suffix == "th" else {}
    path = write(create_model("resnet20").state_dict(), f"weights.{suffix}", **old)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    refused(path, rf"weights\.{suffix} is not a complete ")


class Malicious:
    def __reduce__(self):
        return os.mkdir, (os.environ["SKIPNETS_TEST_TRAP"],)


def saved(value, path):
    torch.save(value, path)


def saved_old(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)


def pickled(value, path):
    path.write_bytes(pickle.dumps(value))


@pytest.mark.parametrize("save", [saved, saved_old, pickled])
@pytest.mark.parametrize("suffix", ["pth", "ckpt", "bin"])
def test_a_malicious_pickle_is_refused_and_not_run(save, suffix, tmp_path, monkeypatch):
    trap = tmp_path / "trap"
    monkeypatch.setenv("SKIPNETS_TEST_TRAP", str(trap))
    path = tmp_path / f"weights.{suffix}"
    save({"state_dict": create_model("resnet20").state_dict(), "extra": Malicious()}, path)
    told = r"holds more than tensors \((posix|nt)\.mkdir\)"
    refused(path, "is not a complete PyTorch checkpoint$" if save is pickled else told)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Malicious()))
    assert trap.exists()  # the trap works


def test_a_pickled_module_is_refused(tmp_path):
    torch.save(torch.nn.Conv2d(3, 4, 1), tmp_path / "weights.pth")
    refused(tmp_path / "weights.pth", r"holds more than tensors \(torch\.nn\..*Conv2d\)")


def test_objects_in_an_npz_are_refused_and_not_run(tmp_path, monkeypatch):
    trap = tmp_path / "trap"
    monkeypatch.setenv("SKIPNETS_TEST_TRAP", str(trap))
    np.savez(tmp_path / "weights.npz", weight=np.array([Malicious()], dtype=object))
    refused(tmp_path / "weights.npz", "not a complete .npz file of numeric arrays")
    assert not trap.exists()


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_no_tensors_at_all(suffix, write):
    refused(write({}, f"weights.{suffix}"), "holds no tensors")


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("odd", [torch.eye(3).to_sparse(), torch.ones(2, dtype=torch.complex64)])
def test_odd_tensors_are_refused(odd, write):
    refused(write({"conv1.weight": odd}), "conv1.weight is not a plain tensor of real numbers")


# Folders of timm's layout


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("timm") / "resnet18"
    model = timm.create_model("resnet18.a1_in1k", pretrained=False, num_classes=5)
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return folder


def test_a_folder_that_timm_wrote(timm_folder, assert_same):
    theirs = timm.create_model("resnet18", pretrained=False, num_classes=5)
    timm.models.load_checkpoint(theirs, str(timm_folder / "model.safetensors"))
    ours = create_model("resnet18", weights=timm_folder, num_classes=5)
    assert_same(ours, theirs.state_dict())
    config = timm.create_model("resnet18.a1_in1k", pretrained=False).pretrained_cfg
    assert ours.weights_report.input == PublishedInput(
        size=(224, 224),
        resize_size=int(224 / config["crop_pct"]),
        interpolation=config["interpolation"],
        **IMAGENET,
    )
    assert ours.weights_report.changes == ours.weights_report.notes == ()
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), atol=1e-5, rtol=1e-5)


def test_resizing_rounds_as_timm_does():
    from timm.data import create_transform

    from skipnets.models.weights.sources import _from_timm

    for size, crop_pct in [(224, 0.875), (224, 0.95), (288, 1.0), (160, 0.9), (224, 0.9)]:
        published = _from_timm({"input_size": (3, size, size), "crop_pct": crop_pct, **IMAGENET})
        resize = create_transform((3, size, size), crop_pct=crop_pct).transforms[0]
        assert published.resize_size == resize.size


def edit_config(folder: Path, tmp_path: Path, edit) -> Path:
    copied = tmp_path / "edited"
    copied.mkdir()
    os.link(folder / "model.safetensors", copied / "model.safetensors")
    edited = edit(json.loads((folder / "config.json").read_text()))
    (copied / "config.json").write_text(edited if isinstance(edited, str) else json.dumps(edited))
    return copied


def test_the_flat_config_of_older_timm(timm_folder, tmp_path):
    folder = edit_config(timm_folder, tmp_path, lambda config: {**config.pop("pretrained_cfg"), **config})
    report = create_model("resnet18", weights=folder, num_classes=5).weights_report
    assert report.input == create_model("resnet18", weights=timm_folder, num_classes=5).weights_report.input


def test_another_architecture_in_the_config_is_said(timm_folder, tmp_path, caplog):
    folder = edit_config(timm_folder, tmp_path, lambda config: {**config, "architecture": "resnetblur18"})
    report = create_model("resnet18", weights=folder, num_classes=5).weights_report
    assert report.notes[0].startswith('config.json names the architecture "resnetblur18", not resnet18')
    assert report.notes[0] in caplog.text


@pytest.mark.parametrize("content", ["{", "[]", '{"pretrained_cfg": {"input_size": 3, "mean": 1, "std": 2}}'])
def test_a_broken_config_is_refused(content, timm_folder, tmp_path):
    folder = edit_config(timm_folder, tmp_path, lambda config: content)
    refused(folder, "config.json is not a config.json as timm writes it", "resnet18")


def test_a_config_without_input_is_no_obstacle(timm_folder, tmp_path):
    folder = edit_config(timm_folder, tmp_path, lambda config: {"architecture": "resnet18"})
    assert create_model("resnet18", weights=folder, num_classes=5).weights_report.input is None


def test_a_folder_without_weights(tmp_path):
    refused(tmp_path, r"must be a folder with a model\.safetensors$")


# This project's own files


def test_an_own_model_file_or_run_folder(make, stirred, write, assert_same):
    tensors = stirred(make())
    preprocessing = {
        "size": [32, 40], "fit": "crop", "crop_fraction": 0.8, "channels": 3, "interpolation": "bilinear",
        "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
    }  # fmt: skip
    metadata = {"skipnets": json.dumps({"format_version": 2, "preprocessing": preprocessing})}
    path = write(tensors, "model.safetensors", metadata=metadata)
    for source in (path, path.parent):
        model = make()
        report = load_weights(model, source)
        assert_same(model, tensors)
        assert report.input == PublishedInput(
            size=(32, 40),
            resize_size=40,
            mean=(0.1, 0.2, 0.3),
            std=(0.4, 0.5, 0.6),
            interpolation="bilinear",
            further={"fit": "crop", "crop_fraction": 0.8},
        )
        assert (report.task, report.labels) == ("single-label", None)


def test_damaged_metadata(write):
    tensors = create_model("resnet20").state_dict()
    refused(write(tensors, "a.safetensors", metadata={"skipnets": "{"}), "damaged metadata")
    images = {"size": [8, 8], "mean": [0.5], "std": [0.5], "interpolation": "bilinear"}
    for damaged in (
        {"preprocessing": {}},
        {"preprocessing": {**images, "window": [5]}},
        {"preprocessing": {**images, "window": []}},
        {"preprocessing": images, "task": "multi-label"},
        {"preprocessing": images, "task": "multi-label", "classes": ["a"], "thresholds": ["high"]},
    ):
        metadata = {"skipnets": json.dumps(damaged)}
        refused(write(tensors, "b.safetensors", metadata=metadata), "damaged metadata")


# torchvision's tags


def cache(tag, name="resnet18") -> Path:
    weights = torchvision.models.get_model_weights(name)[tag]
    return Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])


@pytest.mark.parametrize("tag", ["imagenet", "IMAGENET1K_V1"])
def test_a_torchvision_tag_from_the_cache(tag, stirred, assert_same):
    """The file as torchvision publishes it: names from before 0.3, no counters."""
    theirs = torchvision.models.densenet121(weights=None)
    tensors = stirred(theirs)
    path = cache("IMAGENET1K_V1", "densenet121")
    path.parent.mkdir(parents=True)
    torch.save(
        {
            re.sub(r"(denselayer\d+)\.(norm|conv)(\d)\.", r"\1.\2.\3.", name): tensor
            for name, tensor in tensors.items()
            if not name.endswith("num_batches_tracked")
        },
        path,
    )
    ours = create_model("densenet121", weights=tag)
    assert_same(ours, tensors, but=tuple(name for name in tensors if name.endswith("num_batches_tracked")))
    report = ours.weights_report
    assert report.source == "torchvision DenseNet121_Weights.IMAGENET1K_V1"
    assert report.layout == "named as in torchvision before 0.3"
    assert report.input == PublishedInput(
        size=(224, 224), resize_size=256, interpolation="bilinear", **IMAGENET
    )
    assert "input: shorter side 256, center 224×224, bilinear, mean (0.485, 0.456, 0.406)" in str(report)


def test_the_tag_imagenet_is_torchvisions_default():
    refused("imagenet", "resnet50-11ad3fa6.pth could not be downloaded .*no network here", "resnet50")
    refused("IMAGENET1K_V1", "resnet50-0676ba61.pth could not be downloaded", "resnet50")
    refused(
        "IMAGENET1K_V1",
        f"you can download it to {re.escape(str(cache('IMAGENET1K_V1')))} yourself",
        "resnet18",
    )


class Response(io.BytesIO):
    def info(self):
        return email.message.Message()


def test_a_download_is_checked(monkeypatch, capsys):
    monkeypatch.setattr("torch.hub.urlopen", lambda request: Response(b"not what was published"))
    refused("imagenet", r"is damaged \(invalid hash value .*\): try again", "resnet18")
    assert not cache("IMAGENET1K_V1").exists()
    assert capsys.readouterr().out == ""


def test_a_damaged_cache_says_what_to_remove():
    path = cache("IMAGENET1K_V1")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a file")
    refused("imagenet", f"{re.escape(str(path))} is damaged .*: remove it and try again", "resnet18")


def test_tags_that_do_not_exist():
    refused(
        "IMAGENET1K_V2",
        "weights=IMAGENET1K_V2: must be one of imagenet, IMAGENET1K_V1 for resnet18$",
        "resnet18",
    )
    refused("imagenet", "weights=imagenet: torchvision publishes none for resnet20")
    refused("imagenet", "weights=imagenet: torchvision publishes none for densenet264", "densenet264")


def test_gray_models_get_gray_numbers(stirred):
    path = cache("IMAGENET1K_V1")
    path.parent.mkdir(parents=True)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), path)
    report = create_model("resnet18", weights="imagenet", in_chans=1).weights_report
    assert report.input.mean == pytest.approx((0.449,))
    assert report.input.std == pytest.approx((0.226,))
    assert report.input.for_channels(1) is report.input


def test_further_channels_repeat_the_numbers():
    published = PublishedInput(size=(8, 8), resize_size=None, interpolation="bilinear", **IMAGENET)
    assert published.for_channels(4).mean == (0.485, 0.456, 0.406, 0.485)
    assert str(published).startswith("input: 8×8, bilinear, mean (0.485,")


# The hub


def test_a_hub_name(timm_folder, monkeypatch, assert_same):
    asked = []

    def download(*, repo_id, filename, revision):
        asked.append((repo_id, filename, revision))
        return str(timm_folder / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    model = create_model("resnet18", weights="hf-hub:timm/resnet18.a1_in1k@main", num_classes=5)
    assert asked == [
        ("timm/resnet18.a1_in1k", "config.json", "main"),
        ("timm/resnet18.a1_in1k", "model.safetensors", "main"),
    ]
    assert_same(model, create_model("resnet18", weights=timm_folder, num_classes=5).state_dict())
    assert model.weights_report.source == "hf-hub:timm/resnet18.a1_in1k@main"
    assert model.weights_report.input.size == (224, 224)
    create_model("resnet18", weights="hf-hub:timm/resnet18.a1_in1k", num_classes=5)
    assert asked[-1] == ("timm/resnet18.a1_in1k", "model.safetensors", None)


@pytest.mark.parametrize(
    "error",
    [
        EntryNotFoundError("404 Client Error.\n\nEntry Not Found"),
        LocalEntryNotFoundError("cannot find the file on disk"),
        HFValidationError("Repo id must be in the form 'repo_name'"),
        ConnectionError("no route to host"),
    ],
)
def test_a_hub_name_that_cannot_be_fetched(error, monkeypatch):
    def download(**_):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    gist = re.escape(" ".join(str(error).split()))
    refused(
        "hf-hub:timm/nothing",
        rf"weights=hf-hub:timm/nothing: could not be downloaded \({gist}\); must name",
        "resnet18",
    )


def test_local_sources_ask_nobody(make, stirred, write):
    load_weights(make(), write(stirred(make())))  # the fixture above refuses every download


def test_weights_are_cached_where_torchvision_leaves_them(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert not is_cached("resnet18")
    assert not is_cached("resnet8_w16")
    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / url.rpartition("/")[2]).touch()
    assert is_cached("resnet18")
    assert not is_cached("resnet50")
