"""How the images of a folder are arranged: by class, by split and class, or by class and split.

Nothing is decoded here. What is not used is counted by reason, and what could mean two things is an error
that says how to decide.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from skipnets import run_folder
from skipnets.axes import INPUTS
from skipnets.data.decoding import EXTRA_OF_SUFFIX, SUFFIXES, can_read, is_image
from skipnets.data.listing import Entry, Listing, counted, passed_over_line
from skipnets.data.split_names import is_neutral, split_names
from skipnets.data.splits import SPLITS
from skipnets.data.volume_files import SUFFIXES as SUFFIXES_OF_VOLUMES
from skipnets.errors import UserError, install_command, listed

LAYOUTS = ("auto", "classes", "splits")

# Folders that operating systems, network drives and notebooks leave behind.
# What `str.strip` takes for blanks, and what takes no room: zero-width space and joiners, byte-order mark.
BLANKS = "".join(
    map(
        chr,
        (
            *range(9, 14),
            *range(28, 33),
            0x85,
            0xA0,
            0x1680,
            *range(0x2000, 0x200E),
            0x2028,
            0x2029,
            0x202F,
            0x205F,
            0x2060,
            0x3000,
            0xFEFF,
        ),
    )
)
_JUNK_FOLDERS = {
    *("__MACOSX", "@eaDir", "#recycle", "lost+found", "$RECYCLE.BIN", "System Volume Information"),
    *("__pycache__", "@Recycle"),
}
_JUNK_FILES = {"thumbs.db", "desktop.ini", "ehthumbs.db"}
# Not opened to see whether they are images after all: there may be one beside every image.
_NOT_IMAGES = (
    ".csv",
    ".html",
    ".json",
    ".jsonl",
    ".log",
    ".md",
    ".py",
    ".tsv",
    ".txt",
    ".xml",
    ".yaml",
    ".yml",
)
# A folder that holds one of these was written by this program: a run, or an evaluation.
_OWN_OUTPUT = (run_folder.CONFIG, run_folder.EVALUATION)
# Class folders with these names are probably parts of a data set rather than classes.
_NOT_CLASSES = {"annotations", "bboxes", "images", "labels", "masks"}


@dataclass
class _Folder:
    """A folder with the images in it, everything else already passed over.

    Attributes:
        path: Where it is, through symbolic links.
        identity: Of its inode, equal for all links to it.
        images: Directly in it.
        subfolders: In the order of their names.
        unreadable: Images directly in it that an extra is missing for.
        blank: Whether it holds nothing at all, not even what is passed over.
    """

    path: Path
    identity: tuple[int, int]
    images: list[Path] = field(default_factory=list)
    subfolders: list[_Folder] = field(default_factory=list)
    unreadable: int = 0
    blank: bool = True

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def filled(self) -> list[_Folder]:
        """The subfolders with images at any depth."""
        return [folder for folder in self.subfolders if folder.holds_images]

    @property
    def holds_images(self) -> bool:
        return bool(self.images) or any(folder.holds_images for folder in self.subfolders)

    @property
    def is_class(self) -> bool:
        """Whether it stands for a class, perhaps one without images, and not for something else."""
        return self.holds_images or self.blank or any(folder.unreadable for folder in self.walk())

    def walk(self, seen: set[tuple[int, int]] | None = None) -> Iterator[_Folder]:
        """The folder and all below it, each once."""
        seen = set() if seen is None else seen
        if self.identity not in seen:
            seen.add(self.identity)
            yield self
            for folder in self.subfolders:
                yield from folder.walk(seen)

    def all_images(self) -> list[Path]:
        return [image for folder in self.walk() for image in folder.images]


def images_below(folder: Path, *, dims: int = 2) -> list[Path]:
    """The images in a folder at any depth, in the order of their paths; hidden ones are passed over.

    Args:
        folder: The folder.
        dims: 3 looks for volumes, 1 for signals.
    """
    return sorted(_Scan(folder, dims=dims).read(folder).all_images())


def find_images(root: Path, *, layout: str = "auto", exclude: Sequence[str] = (), dims: int = 2) -> Listing:
    """Find the images of a folder, their classes and their splits.

    Args:
        root: Holds class folders, or split folders ("train", "Validation", "seg_test", …) that hold class
            folders, or class folders that hold split folders; all of it may lie in further folders.
        layout: "classes" takes every folder for a class, "splits" requires split folders, "auto" decides.
        exclude: Patterns of folders and files to pass over, as "masks" or "*_mask.png"; compared with
            names and with paths below the root.
        dims: 3 looks for volumes, 1 for signals.

    Raises:
        UserError: There are no images, or it is not clear what their classes or splits are.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout={layout!r}: must be one of {', '.join(LAYOUTS)}")
    scan = _Scan(root, exclude, dims)
    top = scan.read(root)
    listing = Listing(root=root, passed_over=scan.passed_over)
    if not top.holds_images:
        where = f"{root}/<class>/ or {root}/train/<class>/"
        others = f"; passed over: {passed_over_line(scan.passed_over)}" if scan.passed_over else ""
        kinds = "" if dims == 2 else f" ({', '.join(SUFFIXES_OF_VOLUMES[dims])})"
        raise UserError(f"{root}: holds no {INPUTS[dims]}{kinds}; they must lie in {where}{others}")
    splits = {} if layout == "classes" else _split_folders(top)
    while not splits and not top.images and len(top.filled) == 1 and top.filled[0].filled:
        top = top.filled[0]
        splits = {} if layout == "classes" else _split_folders(top)
    if top.path != root:
        listing.notes.append(f"the images are in {top.path.relative_to(root).as_posix()}/")
    if not top.filled:
        raise UserError(
            f"{top.path}: holds {counted(len(top.images), 'image')} but no class folders; they must lie in "
            f"{top.path}/<class>/, or their labels in a manifest{_manifest_hint(top.path)}"
        )
    if splits:
        _read_splits(listing, top, splits)
    elif layout == "splits":
        raise UserError(
            f"layout=splits: {top.path} holds no split folders (such as train, val, test), only "
            f"{listed(folder.name for folder in top.filled)}"
        )
    elif layout == "auto" and (inner := _splits_in_classes(top)):
        listing.layout = "class folders, in each split folders"
        _pass_loose_over(listing, top)
        for folder in top.filled:
            for split_folder in folder.filled:
                _add_class(listing, folder.name, split_folder, inner[split_folder.name])
    else:
        _read_classes(listing, top, forced=layout == "classes")
    if not listing.entries:
        raise UserError(
            f"{top.path}: the images in {listed(splits)} lie in no class folders; they must lie in "
            f"{top.path}/{next(iter(splits))}/<class>/, or their labels in a manifest"
            f"{_manifest_hint(top.path)}; if {listed(splits)} are classes, --layout classes"
        )
    return listing


def _read_classes(listing: Listing, top: _Folder, *, forced: bool) -> None:
    """One class a folder; images directly in `top` have none."""
    listing.layout = "class folders"
    _pass_loose_over(listing, top)
    for folder in top.subfolders:
        if folder.is_class:
            _add_class(listing, folder.name, folder, "")
        else:
            listing.passed_over[f"folder {folder.name} without images"] += 1
    if not forced:
        listing.warnings += [
            f'the folder "{name}" is read as a class, though it is named like the {split} split'
            for name, split in split_names(listing.classes).items()
        ]
    listing.warnings += [
        f'the folder "{name}" is read as a class; if it is not one, --exclude {name}'
        for name in listing.classes
        if name.casefold() in _NOT_CLASSES
    ]


def _read_splits(listing: Listing, top: _Folder, splits: dict[str, str]) -> None:
    """Class folders in split folders."""
    listing.layout = "split folders with class folders (train/CLASS/…)"
    _pass_loose_over(listing, top)
    for folder in top.subfolders:
        split = splits.get(folder.name)
        if split is None:
            if not folder.blank:
                listing.passed_over[f"folder {folder.name} without images"] += 1
            continue
        if folder.name != split:
            listing.notes.append(f"{folder.name} is the {split} split")
        while (
            not folder.images and len(folder.filled) == 1 and folder.filled[0].filled
            and (is_neutral(folder.filled[0].name) or folder.filled[0].name in splits)
        ):  # fmt: skip
            folder = folder.filled[0]  # a further folder around the classes
        _pass_loose_over(listing, folder)
        for class_folder in folder.subfolders:
            if class_folder.is_class:
                _add_class(listing, class_folder.name, class_folder, split)
            else:
                listing.passed_over[f"folder {folder.name}/{class_folder.name} without images"] += 1
        if folder.holds_images and not folder.filled:
            listing.warnings.append(
                f"the {split} images in {folder.name} lie in no class folders and are not used"
            )


def _split_folders(top: _Folder) -> dict[str, str]:
    """The split folders in a folder: name → split; empty where its folders are classes.

    Raises:
        UserError: Two folders are the same split, there are other folders with images beside split folders,
            or split folders hold images without classes.
    """
    found = split_names(folder.name for folder in top.subfolders)
    if not found:
        return {}
    by_name = {folder.name: folder for folder in top.subfolders}
    filled = [folder.name for folder in top.filled]
    others = [name for name in filled if name not in found]
    nested = [name for name in found if by_name[name].filled]
    if others and not nested:
        return {}  # folders without class folders are classes themselves: "train" beside "bus" and "car"
    if others:
        raise UserError(
            f"{top.path}: holds split folders ({listed(found)}) and beside them other folders with images: "
            f"{listed(others)}; leave them out with --exclude {' --exclude '.join(others[:3])}, "
            "or, if all of them are classes, --layout classes"
        )
    present = {name: split for name, split in found.items() if by_name[name].holds_images}
    for split in SPLITS:
        twice = [name for name, named in present.items() if named == split]
        if len(twice) > 1:
            raise UserError(
                f"{top.path}: {' and '.join(twice)} both name the {split} split; rename one, leave one "
                f"out with --exclude {twice[-1]}, or, if they are classes, --layout classes"
            )
    return found


def _splits_in_classes(top: _Folder) -> dict[str, str]:
    """Where every class folder holds split folders: name → split; empty otherwise."""
    inner = [folder.name for class_folder in top.filled for folder in class_folder.filled]
    found = split_names(inner)
    every_image_split = set(inner) <= set(found) and not any(folder.images for folder in top.filled)
    return found if every_image_split else {}


def _add_class(listing: Listing, label: str, folder: _Folder, split: str) -> None:
    if label != label.strip():
        listing.notes.append(f'the folder "{label}" holds the class "{label.strip()}"')
    label = spelled(label)
    if label not in listing.classes:
        listing.classes.append(label)
    for image in folder.all_images():
        listing.entries.append(Entry(image.relative_to(listing.root).as_posix(), label, split))


def spelled(label: str) -> str:
    """A class name without blanks around it, in one Unicode form: macOS spells é in two code points.

    Characters of no width, which some editors and spreadsheets leave, count as blanks.
    """
    return unicodedata.normalize("NFC", label).strip(BLANKS)


def _pass_loose_over(listing: Listing, folder: _Folder) -> None:
    if folder.images:
        where = folder.path.relative_to(listing.root).as_posix()
        place = "" if where == "." else f" in {where}/"
        listing.passed_over[f"images in no class folder{place}"] += len(folder.images)


def _manifest_hint(folder: Path) -> str:
    tables = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in (".csv", ".tsv", ".jsonl", ".parquet")
    )
    return f" (there is {listed(tables, 3)})" if tables else ""


@dataclass
class _Scan:
    """A walk through a folder that counts what it passes over.

    Attributes:
        root: Where it starts.
        exclude: Patterns of what the user leaves out.
        dims: 3 looks for volumes, 1 for signals.
        passed_over: Reason → count, so far.
    """

    root: Path
    exclude: Sequence[str] = ()
    dims: int = 2
    passed_over: Counter[str] = field(default_factory=Counter)

    def read(self, path: Path, above: Sequence[tuple[int, int]] = ()) -> _Folder:
        """A folder with everything below it, symbolic links followed unless they lead back up."""
        try:
            identity = _identity(path)
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error
        folder = _Folder(path, identity, blank=not entries)
        for entry in entries:
            place = Path(path, entry.name)
            if reason := self._reason_against(entry, place):
                self.passed_over[reason] += 1
                folder.unreadable += reason.startswith(tuple(EXTRA_OF_SUFFIX))
            elif not _is_folder(entry):
                folder.images.append(place)
            elif _identity(place) not in (*above, identity):
                folder.subfolders.append(self.read(place, (*above, identity)))
        return folder

    def _reason_against(self, entry: os.DirEntry[str], place: Path) -> str:
        """Why a folder or file is passed over; "" where it is not."""
        below_root = place.relative_to(self.root).as_posix()
        if _matches(below_root, self.exclude):
            return "excluded"
        if entry.name.startswith("."):
            return "hidden"
        if not _is_folder(entry):
            return _not_an_image(entry) if self.dims == 2 else _not_a_volume(entry, self.dims)
        if entry.name in _JUNK_FOLDERS:
            return f"folder {entry.name}"
        if any(Path(place, name).is_file() for name in _OWN_OUTPUT):
            return f"folder {below_root} (written by skipnets)"
        return ""


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a file or a link to one."""
    try:
        return entry.is_file()
    except OSError:
        return False


def _matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether a path or its last part is like one of the patterns."""
    names = (path, PurePosixPath(path).name)
    return any(fnmatchcase(name, one.rstrip("/")) for one in patterns for name in names)


def is_excluded(name: str, patterns: Sequence[str]) -> bool:
    """Whether patterns leave out a file, or one of the folders that it lies in.

    Args:
        name: The path, with forward slashes.
        patterns: As `find_images` has them.
    """
    path = PurePosixPath(name)
    return any(_matches(str(each), patterns) for each in (path, *path.parents) if each.name)


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_special(entry: os.DirEntry[str]) -> bool:
    """Whether it is no file; a link that leads nowhere counts as one, and is named when it is read."""
    return not _is_file(entry) and os.path.exists(entry)  # noqa: PTH110 - Path.exists raises for some links


def _not_an_image(file: os.DirEntry[str]) -> str:
    """Why a file is passed over; "" where it is an image."""
    if _is_special(file):
        return "not files (pipes, sockets, devices)"
    suffix = os.path.splitext(file.name)[1].lower()  # noqa: PTH122 - Path() would cost more than the rest
    if suffix in SUFFIXES:
        return ""
    if suffix == ".gz" and file.name.lower().endswith(".nii.gz"):
        suffix = ".nii.gz"
    if suffix in EXTRA_OF_SUFFIX:
        return "" if can_read(suffix) else f"{suffix} ({install_command(EXTRA_OF_SUFFIX[suffix])})"
    if file.name.lower() in _JUNK_FILES:
        return "system files"
    if suffix not in _NOT_IMAGES and _is_file(file) and is_image(Path(file.path)):
        return ""
    return suffix if suffix else "without a suffix"


def _not_a_volume(file: os.DirEntry[str], dims: int) -> str:
    """Why a file is passed over; "" where its name is that of a signal or a volume."""
    if _is_special(file):
        return "not files (pipes, sockets, devices)"
    name = file.name.lower()
    suffix = next((known for known in SUFFIXES_OF_VOLUMES[dims] if name.endswith(known)), None)
    if suffix is None:
        return "system files" if name in _JUNK_FILES else Path(name).suffix or "without a suffix"
    if suffix in EXTRA_OF_SUFFIX and not can_read(suffix):
        return f"{suffix} ({install_command(EXTRA_OF_SUFFIX[suffix])})"
    return ""
