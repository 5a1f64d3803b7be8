"""Small datasets for measuring accuracy, as folders: OUT/NAME/{train,test}/CLASS/*.{png,jpg}.

    python benchmarks/datasets.py --out datasets
    python benchmarks/datasets.py --out datasets --names signs textures
    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0
    git clone https://github.com/ardamavi/Sign-Language-Digits-Dataset
    git clone https://github.com/alexeygrigorev/clothing-dataset-small
    python benchmarks/datasets.py --out datasets --sources . --cifar10 cifar10-jpeg.tar.gz

They differ in what a default has to cope with: 500 to 50,000 training images, 8 to 26 classes, 16 to 80
pixels, gray and color, balanced and not, rendered, handwritten and photographed:

| name | images | what they show | from |
|---|---|---|---|
| digits | 16×16, gray | handwritten digits, 8×8 doubled (some programs refuse those) | scikit-learn |
| fashion | 28×28, gray | clothing; 10,000 training images of Fashion-MNIST | a Debian package |
| glyphs | 28×28, gray | capital letters in many fonts, 20 of each for training | rendered here |
| textures | 64×64 | ten kinds of surfaces of any color and scale | generated here |
| signs | 64×64 | 20 signs (shape and character), rotated, blurred, dark, before anything | rendered here |
| emoji | 64×64 | emoji of two designs in eight unequal groups (food, flags, …) | two npm packages |
| sign-digits | 64×64 | hands that sign the digits, photographed | a Git repository |
| clothing | short side 80 | photographs of clothing in ten unequal classes | a Git repository |
| cifar10-10k | 32×32 | CIFAR-10 in compressed JPEG, 10,000 training images | an archive of its files |
| cifar10 | 32×32 | all of its 60,000 | the same |

Every set is the same each time (its generator is seeded by its name). Test images are at most 2,000, except
`cifar10`'s 10,000. The two designs of an emoji are on one side of the split. A set whose source is not there
is named and passed over.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import string
import subprocess
import sys
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

from skipnets.data.named import read_named
from skipnets.errors import UserError

TEST_IMAGES = 2000
FASHION_IMAGES = CIFAR_IMAGES = 10_000

Generator = np.random.Generator
Color = tuple[int, int, int]


class Example(NamedTuple):
    """One image: its split and class, and the file's ending and content."""

    split: str
    label: str
    ending: str
    content: bytes


class Sources(NamedTuple):
    """Where the sets that are not made here come from."""

    folder: Path
    cifar10: Path | None


class MissingSourceError(Exception):
    """A set's source is not on this machine."""


class DatasetSpec(NamedTuple):
    """How a set is made, and the size at which the benchmarks give its images to a network."""

    size: int
    examples: Callable[[Generator, Sources], Iterable[Example]]


def png(split: str, label: str, image: Image.Image | NDArray[np.uint8]) -> Example:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, "PNG")
    return Example(split, label, "png", file.getvalue())


def jpeg(split: str, label: str, image: Image.Image, quality: int = 92) -> Example:
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=quality)
    return Example(split, label, "jpg", file.getvalue())


# Sets that exist


def digits(generator: Generator, sources: Sources) -> Iterator[Example]:
    classes, parts = read_named("digits", download=False)
    images, labels = parts[""]
    order = generator.permutation(len(images))
    tested = set(order[: len(order) // 3].tolist())
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield png("test" if index in tested else "train", classes[label], image.repeat(2, 0).repeat(2, 1))


def fashion(generator: Generator, sources: Sources) -> Iterator[Example]:
    try:
        classes, parts = read_named("fashion-mnist", download=False)
    except UserError as error:
        raise MissingSourceError(error) from error
    for split, count in (("train", FASHION_IMAGES), ("test", TEST_IMAGES)):
        images, labels = parts[split]
        for index in generator.permutation(len(images))[:count]:
            yield png(split, classes[labels[index]].replace("/", " or "), images[index])


def cifar10(generator: Generator, sources: Sources) -> Iterator[Example]:
    """All of CIFAR-10, from a tar archive or a folder with `{train,test}/CLASS/*.jpg`."""
    source = sources.cifar10
    if source is None:
        raise MissingSourceError("--cifar10 is not given")
    if source.is_dir():
        files: Iterable[tuple[Path, bytes]] = ((path, path.read_bytes()) for path in source.rglob("*.jpg"))
    else:
        with tarfile.open(source) as archive:
            files = [
                (Path(member.name), stream.read())
                for member in archive
                if member.isfile() and (stream := archive.extractfile(member)) is not None
            ]
    for path, content in sorted(files):
        split, label = path.parts[-3:-1]
        yield Example(split, label, "jpg", content)


def cifar10_subset(generator: Generator, sources: Sources) -> Iterator[Example]:
    examples = defaultdict(list)
    for example in cifar10(generator, sources):
        examples[example.split].append(example)
    for split, count in (("train", CIFAR_IMAGES), ("test", TEST_IMAGES)):
        for index in generator.permutation(len(examples[split]))[:count]:
            yield examples[split][index]


def sign_digits(generator: Generator, sources: Sources) -> Iterator[Example]:
    files = checked_out(sources.folder / "Sign-Language-Digits-Dataset", "Dataset/")
    order = generator.permutation(len(files))
    tested = set(order[: len(order) * 3 // 10].tolist())
    for index, (path, content) in enumerate(files):
        image = Image.open(io.BytesIO(content)).resize((64, 64), Image.Resampling.LANCZOS)
        yield jpeg("test" if index in tested else "train", path.parts[-2], image)


def clothing(generator: Generator, sources: Sources) -> Iterator[Example]:
    """The set's own training and validation part for training, its test part for testing."""
    for path, content in checked_out(sources.folder / "clothing-dataset-small", ""):
        split, label = path.parts[-3:-1]
        image = Image.open(io.BytesIO(content)).convert("RGB")
        scale = 80 / min(image.size)
        image = image.resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS
        )
        yield jpeg("test" if split == "test" else "train", label, image)


def checked_out(repository: Path, prefix: str) -> list[tuple[Path, bytes]]:
    """The JPEG files of a Git repository's last commit, with or without a work tree."""
    git = ["git", "-c", "safe.directory=*", "-C", str(repository)]
    if not repository.is_dir():
        raise MissingSourceError(f"{repository} is not there")
    archive = subprocess.run(
        [*git, "archive", "--format=tar", "HEAD"], check=True, capture_output=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        return [
            (Path(member.name), stream.read())
            for member in files
            if member.name.startswith(prefix) and member.name.lower().endswith(".jpg")
            if (stream := files.extractfile(member)) is not None
        ]


def emoji(generator: Generator, sources: Sources) -> Iterator[Example]:
    """Eight groups of emoji in two designs, on backgrounds of any light color."""
    designs = {}
    for design in ("google", "twitter"):
        package = sources.folder / f"emoji-datasource-{design}-16.0.0.tgz"
        if not package.is_file():
            raise MissingSourceError(f"{package} is not there")
        with tarfile.open(package) as files:
            designs[design] = {
                member.name.removeprefix("package/"): stream.read()
                for member in files
                if "/64/" in member.name or member.name == "package/emoji.json"
                if (stream := files.extractfile(member)) is not None
            }
    table = json.loads(designs["google"]["emoji.json"])
    table = [row for row in table if row["category"] not in {"Component", "Smileys & Emotion"}]
    order = generator.permutation(len(table))
    tested = set(order[: len(order) // 4].tolist())
    for index, row in enumerate(table):
        for design, files_of in designs.items():
            content = files_of.get(f"img/{design}/64/{row['image']}")
            if content is None:
                continue
            drawing = Image.open(io.BytesIO(content)).convert("RGBA")
            background = Image.new("RGBA", (64, 64), (*color(generator, 150, 256), 255))
            background.alpha_composite(drawing.resize((56, 56), Image.Resampling.LANCZOS), (4, 4))
            yield jpeg("test" if index in tested else "train", row["category"], background)


# Sets that are drawn here


def color(generator: Generator, low: int, high: int) -> Color:
    red, green, blue = generator.integers(low, high, size=3).tolist()
    return red, green, blue


def fonts() -> list[Path]:
    """The 25 text fonts that matplotlib ships."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    symbols = ("Display", "NonUni", "Siz", "LastResort", "cmex", "cmmi", "cmsy")
    return sorted(path for path in folder.glob("*.ttf") if not any(part in path.name for part in symbols))


def clouds(generator: Generator, size: int, roughness: float) -> NDArray[np.float64]:
    """Noise with the spectrum 1/f^roughness, scaled to 0–1: the larger, the smoother."""
    frequencies = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :])
    frequencies[0, 0] = 1 / size
    spectrum = np.fft.fft2(generator.normal(size=(size, size))) / frequencies**roughness
    field = np.fft.ifft2(spectrum).real
    return (field - field.min()) / (np.ptp(field) + 1e-9)


def character(
    generator: Generator, text: str, font: Path, height: float, size: int, ink: Color, degrees: float
) -> Image.Image:
    """A character in the middle of a transparent square, turned."""
    image = Image.new("RGBA", (size, size))
    face = ImageFont.truetype(str(font), round(height))
    shift = generator.uniform(-0.04, 0.04, size=2) * size
    center = (size / 2 + shift[0], size / 2 + shift[1])
    ImageDraw.Draw(image).text(center, text, font=face, fill=(*ink, 255), anchor="mm")
    return image.rotate(degrees, Image.Resampling.BICUBIC)


def glyphs(generator: Generator, sources: Sources) -> Iterator[Example]:
    faces = fonts()
    for letter in string.ascii_uppercase:
        for number in range(60):
            ink, paper = (230, 20) if generator.random() < 0.5 else (20, 230)
            canvas = Image.new("RGBA", (56, 56), (paper, paper, paper, 255))
            face = faces[generator.integers(len(faces))]
            drawn = character(
                generator, letter, face, generator.uniform(26, 50), 56, (ink,) * 3, generator.normal() * 12
            )
            canvas.alpha_composite(drawn)
            gray = np.asarray(
                canvas.convert("L").resize((28, 28), Image.Resampling.LANCZOS), dtype=np.float64
            )
            gray += generator.normal(size=gray.shape) * generator.uniform(0, 40)
            yield png("train" if number < 20 else "test", letter, np.clip(gray, 0, 255).astype(np.uint8))


SHAPES = {  # corners on a circle of radius 1, in degrees
    "circle": range(0, 360, 10),
    "triangle": (30, 150, 270),
    "diamond": (0, 90, 180, 270),
    "octagon": [22.5 + 45 * corner for corner in range(8)],
    "square": (45, 135, 225, 315),
}


def signs(generator: Generator, sources: Sources) -> Iterator[Example]:
    """A shape with a border and a character, anywhere before a cloudy background, in any light."""
    faces = fonts()
    side = 128  # drawn at twice the size
    for shape, angles in SHAPES.items():
        for text in "38PR":
            for number in range(140):
                degrees = generator.normal() * 10
                radius = generator.uniform(0.55, 0.95) * side / 2
                center = side / 2 + generator.uniform(-1, 1, size=2) * (side / 2 - radius)
                plate, border, ink = sign_colors(generator)
                sign = Image.new("RGBA", (side, side))
                draw = ImageDraw.Draw(sign)
                for scale, fill in ((1.0, border), (0.84, plate)):
                    turned = np.radians(np.array(angles))
                    corners = side / 2 + radius * scale * np.stack([np.cos(turned), np.sin(turned)], 1)
                    draw.polygon([(x, y) for x, y in corners.tolist()], fill=(*fill, 255))
                face = faces[generator.integers(len(faces))]
                height = radius * (0.75 if shape == "triangle" else 1.0)
                sign.alpha_composite(character(generator, text, face, height, side, ink, 0))
                sign = sign.rotate(degrees, Image.Resampling.BICUBIC, translate=tuple(center - side / 2))
                photo = scene(generator, side)
                photo.alpha_composite(sign)
                image = in_any_light(
                    generator, photo.convert("RGB").resize((64, 64), Image.Resampling.LANCZOS)
                )
                split = "train" if number < 100 else "test"
                yield jpeg(split, f"{shape}-{text}", image, quality=int(generator.integers(50, 95)))


def sign_colors(generator: Generator) -> tuple[Color, Color, Color]:
    """Plate, border and ink: a light plate with dark ink, or the other way round."""
    light, dark, border = color(generator, 190, 256), color(generator, 0, 70), color(generator, 0, 256)
    return (light, border, dark) if generator.random() < 0.6 else (dark, border, light)


def scene(generator: Generator, side: int) -> Image.Image:
    """A cloudy background of two colors with some boxes."""
    field = clouds(generator, side, generator.uniform(0.8, 2.0))[..., None]
    first, second = np.array(color(generator, 0, 256)), np.array(color(generator, 0, 256))
    image = Image.fromarray((field * first + (1 - field) * second).astype(np.uint8)).convert("RGBA")
    draw = ImageDraw.Draw(image)
    for _ in range(generator.integers(0, 5)):
        x, y, width, height = generator.uniform(0, side, size=4)
        draw.rectangle((x, y, x + width / 2, y + height / 2), fill=(*color(generator, 0, 256), 255))
    return image


def in_any_light(generator: Generator, image: Image.Image) -> Image.Image:
    image = ImageEnhance.Brightness(image).enhance(generator.uniform(0.35, 1.3))
    image = ImageEnhance.Contrast(image).enhance(generator.uniform(0.5, 1.2))
    image = image.filter(ImageFilter.GaussianBlur(generator.uniform(0, 1.3)))
    noise = generator.normal(size=(*image.size, 3)) * generator.uniform(0, 18)
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


Surface = Callable[[Generator, NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


def stripes(generator: Generator, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 + 0.5 * np.sin(x)


def checks(generator: Generator, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return (np.sin(x) * np.sin(y) > 0).astype(np.float64)


def dots(generator: Generator, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return (np.cos(x) + np.cos(y) > generator.uniform(0.3, 1.0)).astype(np.float64)


def bricks(generator: Generator, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    row = np.floor(y / 3)
    joint = ((y / 3) % 1 < 0.15) | ((x / 6 + 0.5 * (row % 2)) % 1 < 0.08)
    return np.where(joint, 1.0, 0.2)


def rings(generator: Generator, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    center = generator.uniform(-12, 12, size=2)
    return 0.5 + 0.5 * np.sin(np.hypot(x - center[0], y - center[1]))


def weave(generator: Generator, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    over = (np.floor(x / np.pi) + np.floor(y / np.pi)) % 2 == 0
    return np.where(over, np.abs(np.sin(x)), np.abs(np.sin(y)))


def cells(generator: Generator, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance to the nearest point minus that to the next: dark borders between cells."""
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    points = generator.uniform(low, high, size=(max(6, round(((high - low) / 7) ** 2)), 2))
    distances = np.sort(np.hypot(x[..., None] - points[:, 0], y[..., None] - points[:, 1]), axis=-1)
    return np.clip((distances[..., 1] - distances[..., 0]) / 3, 0, 1)


def smoke(generator: Generator, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return clouds(generator, len(x), generator.uniform(1.5, 2.2))


def marble(generator: Generator, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 + 0.5 * np.sin(x + 14 * clouds(generator, len(x), 2.0))


def gravel(generator: Generator, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return clouds(generator, len(x), generator.uniform(0.0, 0.6))


SURFACES: tuple[Surface, ...] = (bricks, cells, checks, dots, gravel, marble, rings, smoke, stripes, weave)


def textures(generator: Generator, sources: Sources) -> Iterator[Example]:
    """Each surface at any scale and angle, bent, between any two colors, with noise."""
    grid = np.arange(64) - 32.0
    for surface in SURFACES:
        for number in range(160):
            angle, scale = generator.uniform(0, 2 * np.pi), generator.uniform(0.3, 1.1)
            bend = generator.uniform(0, 10)
            across = grid[None, :] + bend * clouds(generator, 64, 2.0)
            down = grid[:, None] + bend * clouds(generator, 64, 2.0)
            x = scale * (np.cos(angle) * across + np.sin(angle) * down)
            y = scale * (np.cos(angle) * down - np.sin(angle) * across)
            mix = surface(generator, x, y)[..., None]
            mix = np.clip(mix + generator.normal(size=mix.shape) * generator.uniform(0, 0.5), 0, 1)
            first, second = np.array(color(generator, 0, 256)), np.array(color(generator, 0, 256))
            image = Image.fromarray((mix * first + (1 - mix) * second).astype(np.uint8))
            yield jpeg("train" if number < 100 else "test", surface.__name__, image)


DATASETS: dict[str, DatasetSpec] = {
    "digits": DatasetSpec(32, digits),
    "fashion": DatasetSpec(32, fashion),
    "glyphs": DatasetSpec(32, glyphs),
    "textures": DatasetSpec(64, textures),
    "signs": DatasetSpec(64, signs),
    "emoji": DatasetSpec(64, emoji),
    "sign-digits": DatasetSpec(64, sign_digits),
    "clothing": DatasetSpec(64, clothing),
    "cifar10-10k": DatasetSpec(32, cifar10_subset),
    "cifar10": DatasetSpec(32, cifar10),
}


def build(name: str, out: Path, sources: Sources) -> Path:
    """Write a set's folder, whole or not at all.

    Raises:
        MissingSourceError: Its source is not on this machine.
    """
    target, partial = out / name, out / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    try:
        for number, example in enumerate(DATASETS[name].examples(generator, sources)):
            folder = partial / example.split / example.label
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:05d}.{example.ending}").write_bytes(example.content)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder that the sets go into")
    parser.add_argument("--names", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument(
        "--sources", type=Path, default=Path(), help="where the npm archives and the repositories lie"
    )
    parser.add_argument("--cifar10", type=Path, help="archive or folder with {train,test}/CLASS/*.jpg")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        target = options.out / name
        if not target.exists():
            try:
                build(name, options.out, Sources(options.sources, options.cifar10))
            except MissingSourceError as error:
                print(f"{name}: passed over ({error})", file=sys.stderr)
                continue
        counts = [len(list((target / split).rglob("*.*"))) for split in ("train", "test")]
        classes = len(list((target / "train").iterdir()))
        print(f"{target}: {classes} classes, {counts[0]} training and {counts[1]} test images")


if __name__ == "__main__":
    main()
