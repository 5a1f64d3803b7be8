"""Every runtime gives each image its own answer: from several threads, after a fork, in a spawned process."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from skipnets.classifier import Classifier, load
from skipnets.deploy.export import Export
from skipnets.errors import UserError
from skipnets.insight.attribution import explain

RUNTIMES = ("native", "onnxruntime", "openvino", "pt2", "torch")
THREADS = 8
Call = Callable[[Classifier, NDArray[np.uint8]], NDArray[np.floating]]


@pytest.fixture(scope="module", params=RUNTIMES)
def opened(
    request: pytest.FixtureRequest, exported_classifier: Classifier, exports: dict[str, Export]
) -> Classifier:
    """The same small classifier, opened in each runtime."""
    if request.param in ("native", "torch"):
        if request.param == "native":
            pytest.importorskip("skipnets_engine")
        assert exported_classifier.path is not None
        return load(exported_classifier.path, runtime=request.param, device="cpu")
    return load(exports[request.param.removesuffix("runtime")].path, device="cpu")


def images(count: int = THREADS) -> list[NDArray[np.uint8]]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 16, 20, 3), dtype=np.uint8))


def _predict(classifier: Classifier, image: NDArray[np.uint8]) -> NDArray[np.floating]:
    [prediction] = classifier.predict(image, top_k=3, workers=1)
    return np.array([dict(prediction.ranking)[label] for label in classifier.classes])


def _embed(classifier: Classifier, image: NDArray[np.uint8]) -> NDArray[np.floating]:
    return classifier.embed(image, workers=1)


def _explain(classifier: Classifier, image: NDArray[np.uint8]) -> NDArray[np.floating]:
    [[explanation]] = explain(classifier, image, classes=["bee"])
    return explanation.grid


def check_threads(classifier: Classifier, calls: dict[str, Call], rounds: int) -> None:
    """Each thread asks about its own image in turn in each way, and compares with what one thread got."""
    inputs = images()
    expected = {name: [call(classifier, image) for image in inputs] for name, call in calls.items()}
    for answers in expected.values():
        assert len({answer.tobytes() for answer in answers}) == THREADS

    def wrong_answers(number: int) -> int:
        wrong = 0
        for turn in range(rounds):
            name = list(calls)[turn % len(calls)]
            answer = calls[name](classifier, inputs[number])
            wrong += not np.allclose(answer, expected[name][number], atol=1e-5)
        return wrong

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            assert sum(pool.map(wrong_answers, range(THREADS))) == 0
    finally:
        sys.setswitchinterval(before)


def test_threads_get_their_own_answers(opened: Classifier) -> None:
    check_threads(opened, {"predict": _predict, "embed": _embed}, rounds=10)


def test_threads_get_their_own_explanations(exported_classifier: Classifier) -> None:
    check_threads(exported_classifier, {"explain": _explain, "predict": _predict}, rounds=6)


@pytest.mark.slow
def test_threads_get_their_own_answers_at_length(opened: Classifier) -> None:
    check_threads(opened, {"predict": _predict, "embed": _embed}, rounds=200)


@pytest.mark.slow
def test_threads_get_their_own_explanations_at_length(exported_classifier: Classifier) -> None:
    check_threads(exported_classifier, {"explain": _explain, "predict": _predict}, rounds=200)


def test_a_copy_by_pickle_answers_alike(opened: Classifier) -> None:
    copied = pickle.loads(pickle.dumps(opened))
    assert repr(copied) == repr(opened)
    assert copied.export == opened.export
    for image in images(3):
        np.testing.assert_allclose(_predict(copied, image), _predict(opened, image), atol=1e-6)


def _send_back(classifier: Classifier, pipe: object) -> None:
    pipe.send([_predict(classifier, image) for image in images(3)])  # type: ignore[attr-defined]


def _answers_of_spawned(classifier: Classifier) -> list[NDArray[np.floating]]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_send_back, args=(classifier, there))
    process.start()
    there.close()
    try:
        assert here.poll(60), "no answer"
        answers = here.recv()
    finally:
        process.kill()
        process.join()
    return answers


@pytest.mark.slow
def test_a_spawned_process_answers_alike(opened: Classifier) -> None:
    expected = [_predict(opened, image) for image in images(3)]
    for answer, wanted in zip(_answers_of_spawned(opened), expected, strict=True):
        np.testing.assert_allclose(answer, wanted, atol=1e-5)


# In a process of its own: other tests have left threads here, whose locks a fork would copy as they are.
FORKED_WITH_THREADS = """
import os, signal, sys
import numpy as np
from skipnets.classifier import load
classifier = load(sys.argv[1], runtime=sys.argv[2], device="cpu", threads=2)
image = np.arange(960, dtype=np.uint8).reshape(16, 20, 3)
[expected] = classifier.predict(image, top_k=3)
if (child := os.fork()) == 0:
    signal.alarm(30)
    [prediction] = classifier.predict(image, top_k=3)
    found, wanted = dict(prediction.ranking), dict(expected.ranking)
    near = all(abs(found[label] - wanted[label]) < 1e-5 for label in wanted)
    os._exit(0 if near and prediction.label == expected.label else 1)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
sys.exit(f"the child ended with status {status}" if status else 0)
"""


@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="this system cannot fork")
def test_a_process_forked_from_one_with_threads_answers_alike(opened: Classifier) -> None:
    assert opened.path is not None
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED_WITH_THREADS, opened.path, opened.runtime.name],
        check=True,
        timeout=100,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )


def test_a_replaced_file_is_not_opened_in_the_place_of_the_first(
    exports: dict[str, Export], tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(exports["onnx"].path.read_bytes())
    pickled = pickle.dumps(load(path))
    path.write_bytes(exports["onnx"].path.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"m\.onnx was replaced or removed since"):
        pickle.loads(pickled)
