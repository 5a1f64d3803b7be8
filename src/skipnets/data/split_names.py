"""Which split a folder or a value in a table names: "Training", "valid", "seg_test", "測試" and the like."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

# Only words that name a split and nothing else in their language.
_WORDS = {
    "train": (
        *("train", "training", "trn", "trainset", "trainingset", "traindata", "trainingsdaten"),
        *("entrainement", "apprentissage", "entrenamiento", "addestramento", "treino", "treinamento"),
        *("egitim", "обучение", "тренировка", "训练", "训练集", "訓練", "学習", "학습", "훈련"),
        *("обучающая", "тренировочная", "навчання", "treningowe", "treningowy", "treningowa", "trening"),
        *("traning", "træning", "koulutus", "trenovaci", "antrenament", "latih", "pelatihan"),
        *("εκπαίδευση", "تدريب"),
    ),
    "val": (
        *("val", "valid", "validation", "validate", "validationset", "valset", "dev", "devel", "development"),
        *("eval", "evaluation", "validierung", "validacion", "validacao", "validazione", "convalida"),
        *("dogrulama", "валидация", "验证", "验证集", "驗證", "検証", "검증"),
        *("валидационная", "валідація", "walidacyjne", "walidacyjny", "walidacja", "validatie", "validering"),
        *("validointi", "validacni", "validare", "validasi", "επικύρωση", "تحقق"),
    ),
    "test": (
        *("test", "testing", "tst", "testset", "testdata", "testdaten", "holdout", "prueba", "pruebas"),
        *("teste", "тест", "测试", "测试集", "測試", "テスト", "테스트"),
        *("essai", "essais", "prova", "тестовая", "тестирование", "тестування", "testowe", "testowy"),
        *("testowa", "testaus", "testen", "testovaci", "testare", "uji", "pengujian", "δοκιμή", "اختبار"),
    ),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
# Words beside the split's that say nothing: "train_images", "test-set", "original_train".
_NEUTRAL = {
    *("set", "data", "dataset", "image", "images", "img", "imgs", "photo", "photos", "picture", "pictures"),
    *("split", "folder", "files", "samples", "cropped", "resized", "original", "new", "final", "the"),
}


def _words(name: str) -> list[str]:
    """The words of a name, without case, accents and digits: "seg_Train2017" → ["seg", "train"]."""
    separated = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    without_accents = re.sub(
        "(?<=[a-z])[\u0300-\u036f]+", "", unicodedata.normalize("NFKD", separated).casefold()
    )
    composed = unicodedata.normalize("NFKC", without_accents)
    return re.findall(r"[^\W\d_]+", re.sub("hold[-_ ]out", "holdout", composed))


def is_neutral(name: str) -> bool:
    """Whether a folder's name only says that there are images in it: "images", "data", "my_dataset2"."""
    words = _words(name)
    return bool(words) and set(words) <= _NEUTRAL


def split_named(value: str) -> str | None:
    """The split that a single value names, as in a table's split column; None if it names none."""
    return split_names([value]).get(value)


def split_names(names: Iterable[str]) -> dict[str, str]:
    """Which of these sibling names name a split: name → "train", "val" or "test".

    A name counts if one of its words does and the others are neutral ("train_images"), or are the same in
    the names of two splits ("seg_train" beside "seg_test", but not "train_station" beside "test_tube").
    """
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for name in names:
        words = _words(name)
        splits = [_SPLIT_OF[word] for word in words if word in _SPLIT_OF]
        if len(splits) == 1:
            rest = tuple(word for word in words if word not in _SPLIT_OF and word not in _NEUTRAL)
            found[name] = (splits[0], rest)
    splits_with: dict[tuple[str, ...], set[str]] = {}
    for split, rest in found.values():
        splits_with.setdefault(rest, set()).add(split)
    return {name: split for name, (split, rest) in found.items() if not rest or len(splits_with[rest]) > 1}
