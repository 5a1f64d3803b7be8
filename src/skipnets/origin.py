"""Where an opened model came from, so that another process can open the same one again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from skipnets.errors import UserError

__all__ = ["Origin"]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A model file or an export, as it was when it was opened, and how it was opened.

    Attributes:
        path: The file, or the folder of an OpenVINO graph; absolute.
        runtime: The runtime's name.
        device: The device option.
        threads: The threads option.
        fingerprint: Name, size and time of change of each file.
    """

    path: Path
    runtime: str
    device: str
    threads: int | None
    fingerprint: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, path: Path, *, runtime: str, device: str, threads: int | None) -> Origin:
        """What is opened now."""
        path = path.absolute()
        return cls(path=path, runtime=runtime, device=device, threads=threads, fingerprint=_fingerprint(path))

    def check(self) -> None:
        """Check that the files are still those that were opened.

        Raises:
            UserError: If they were replaced or removed: the weights would be those of another model.
        """
        if _fingerprint(self.path) != self.fingerprint:
            raise UserError(
                f"{self.path} was replaced or removed since it was opened: load it again before "
                "handing the classifier to another process"
            )


def _fingerprint(path: Path) -> tuple[tuple[str, int, int], ...]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    states = [(file.name, file.stat()) for file in files if file.exists()]
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)
