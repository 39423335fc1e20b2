"""What `--corpus` of a recipe names, and where its data go: the protocol of stages 0 and 1 of all recipes.

A corpus lives in `data/NAME`: `corpus` is the corpus itself (a link, two links `train` and `test`, a folder with such
links `1`, `2`, ... for each of several joined corpora, or what stage 0 made or downloaded), `corpus.json` says what it
is, and the stages put their files beside it. Manifests and stamps refer
to the audio through `data/NAME/corpus`, so they depend neither on where the data are nor on where the corpus is. A
recipe knows the forms of corpus that it accepts, and finds out which one it was given:

    corpus = locate(args, ACCEPTED, downloaded="fuss")
    root = detect(corpus.origins)     # of the recipe; names what is wrong by the user's own paths
    corpus.claim({"form": ...})       # stage 0: links, and corpus.json
    corpus.require()                  # stage 1: stage 0 has been here, for this corpus
    for path in walk(corpus.roots[0]): ...

`python -m utils.data.corpus --corpus=WHAT` gives run.sh the name and the place, so that shell and Python agree.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from utils.data.directories import Parts, as_text, linked_text, name_of, readings
from utils.data.names import plain
from utils.data.walking import fingerprint, is_litter
from utils.errors import UserError, command
from utils.files import read_json, remove_leftovers, temporary_name, write_json
from utils.stamps import NAME as STAMP
from utils.stamps import differences

NOTE = "corpus.json"
LONGEST_NAME = 100  # bytes: names of experiments are made of it and must fit into 255


# ---- changes


def compare_names(old: Iterable[str], new: Iterable[str]) -> str:
    """How two lists of files differ, for a message; "" if they do not."""
    old_names = set(old)
    new_names = set(new)
    changes = {
        "added": sorted(new_names - old_names),
        "gone": sorted(old_names - new_names),
    }
    parts = []
    for verb, names in changes.items():
        if not names:
            continue
        shown = ", ".join(names[:3])
        more = ", ..." if len(names) > 3 else ""
        parts.append(f"{len(names)} {verb} ({shown}{more})")
    return " and ".join(parts)


def refuse_changes(manifests: Path, now: dict) -> None:
    """Stop if a finished folder was made from other lists, or from more or fewer files, than there are now.

    Args:
        manifests: the folder; its stamp.json, if there is one, is what `now` was then.
        now: lists of file names, or hashes of files, each by the name that a message gives it.

    Raises:
        UserError: with the names of what has changed.
    """
    stamp = manifests / STAMP
    if not stamp.is_file():
        return
    before = read_json(stamp, f"delete {manifests} to make it anew")
    # Lists of names are compared name by name, files by their hashes.
    changes = []
    for key in sorted(before.keys() | now.keys()):
        old = before.get(key)
        new = now.get(key)
        if old == new:
            continue
        if isinstance(old, list) and isinstance(new, list):
            difference = compare_names(old, new)
            # Another order is no difference.
            if difference:
                changes.append(f"files in {key}: {difference}")
        elif old and new:
            changes.append(f"the content of {key}")
        else:
            changes.append(f"{key}, which is {'new' if new else 'gone'}")
    if changes:
        raise UserError(
            f"the corpus has changed since {manifests} was made: {'; '.join(changes)}. Restore it, or delete "
            f"{manifests} to make it anew (unchanged audio is kept), or choose another name with --name"
        )


def contents(folder: Path) -> str:
    """The first names in a folder, for a message that says what was not found there."""
    # Hidden files are not what a person has put there.
    names = sorted(entry.name for entry in os.scandir(folder) if not is_litter(entry.name))
    return ", ".join(names[:12]) or "nothing"


# ---- a corpus and its folder


def _check_name(name: str, option: str) -> str:
    """Return a name that can be that of a folder and part of the names of experiments, or raise a `UserError`."""
    if name in ("", ".", "..") or "/" in name or plain(name) != name:
        raise UserError(
            f"{option}: {name!r} cannot be the name of a folder of data. Choose one with --name"
        )
    if len(name.encode()) > LONGEST_NAME:
        raise UserError(
            f"{option}: the name {name[:20]}... has {len(name.encode())} bytes, but at most {LONGEST_NAME} are "
            "possible. Choose a shorter one with --name"
        )
    return name


@dataclass(frozen=True)
class Corpus:
    """What `--corpus` names."""

    kind: str
    """`mini`, `download` or `directory`."""
    name: str
    """Of the folder of data and of the experiments."""
    parts: Parts
    """Absolute: the directory, or those of training and test; several such parts if corpora are joined. Of mini and
    download, as `linked_parts`."""
    folder: Path
    """Absolute and without links, data/NAME."""

    @property
    def linked_parts(self) -> Parts:
        """The same as `parts`, by way of `data/NAME/corpus`: what manifests and stamps refer to."""
        # One name for all corpora, so that what is made does not depend on where they are.
        place = self.folder / "corpus"
        linked = []
        # Parts are numbered as they were given.
        for number, part in enumerate(self.parts, 1):
            root = place
            if len(self.parts) > 1:
                root = place / str(number)
            linked.append((root,) if len(part) == 1 else (root / "train", root / "test"))
        return tuple(linked)

    @property
    def origins(self) -> tuple[Path, ...]:
        """The directories of all parts."""
        return tuple(itertools.chain(*self.parts))

    @property
    def roots(self) -> tuple[Path, ...]:
        """The same as `origins`, by way of `data/NAME/corpus`."""
        return tuple(itertools.chain(*self.linked_parts))

    @property
    def given(self) -> str:
        """What to write after `--corpus` to get this corpus from anywhere."""
        if self.kind != "directory":
            return self.kind
        return as_text(self.parts)

    def prepare(self, mini: dict, make_mini: Callable[[Path], object]) -> dict:
        """Make the mini corpus, if it is this one (stage 0).

        Args:
            mini: its settings, plain data: with other settings it is another corpus.
            make_mini: called with the folder where it goes.

        Returns:
            the details for `claim`: `mini`, or nothing.

        Raises:
            UserError: the folder belongs to another corpus, or was made with other details.
        """
        details = mini if self.kind == "mini" else {}
        self.check(details)
        # What exists of it is kept.
        if self.kind == "mini":
            make_mini(self.roots[0])
        return details

    def claim(self, details: dict | None = None) -> None:
        """Take data/NAME for this corpus (stage 0): links to the directories, and corpus.json.

        If everything is as it should be, nothing is written.

        Args:
            details: what else data/NAME depends on, plain data.

        Raises:
            UserError: the folder belongs to another corpus, or was made with other details.
        """
        # Before anything is written.
        self.check(details)
        self._tidy()
        if self.kind == "directory":
            self._link()
        note = {"corpus": self.kind, **(details or {})}
        # Where it lay is no part of what it is.
        path = self.folder / NOTE
        if self.kind == "directory":
            note["fingerprint"] = self._fingerprint()
        if not path.is_file() or self._read_note() != note:
            write_json(path, note)

    def require(self) -> dict:
        """The content of corpus.json, for stage 1.

        Raises:
            UserError: stage 0 has not been run, or for another corpus.
        """
        if not (self.folder / NOTE).is_file():
            raise UserError(f"{self.folder / NOTE} does not exist: run stage 0 first")
        self.check()
        self._tidy()
        return self._read_note()

    def _tidy(self) -> None:
        """Remove what killed runs left beside the corpus; folders of audio are tidied by the code that fills them."""
        remove_leftovers(self.folder, nested=False)
        for place in self._folders_of_links():
            remove_leftovers(place, nested=False)
        for name in ("manifests", "mix_lists"):
            remove_leftovers(self.folder / name)

    def check(self, details: dict | None = None) -> None:
        """Compare data/NAME, if it exists, with the corpus, and renew the links to one that has moved.

        As long as the links lead to the directories given, nothing is read. Otherwise their contents decide, so a
        corpus may be moved, copied or mounted elsewhere, and two of one name are told apart.

        Args:
            details: as of `claim`; None: any.

        Raises:
            UserError: data/NAME belongs to another corpus, or was made with other details; or the directory given does
                not exist.
        """
        known = (self.folder / NOTE).is_file()
        if known and details:
            self._check_details(details)
        linked = self.kind == "directory" and self._is_linked()
        if known and linked:
            return
        absent = [origin for origin in self.origins if not origin.is_dir()]
        if self.kind == "directory" and absent:
            raise UserError(f"--corpus: {absent[0]} is not a directory")
        place = self.folder / "corpus"
        if not known:
            # A link left by a stage 0 that was killed: what is made must not go through it into somebody's corpus.
            if place.is_symlink() and self.kind != "directory":
                place.unlink()
            return
        # The links are gone or lead elsewhere: the same corpus in another place, or another one?
        note = self._read_note()
        same = note.get("corpus") == self.kind
        if same and self.kind == "directory":
            same = note.get("fingerprint") == self._fingerprint()
        if not same:
            raise UserError(
                f"{self.folder} belongs to another corpus ({self._owner(note)}), not to {self.given}. Choose another "
                f"name for this one with --name, or delete {self.folder}"
            )
        if self.kind == "directory":
            self._link()

    def _check_details(self, details: dict) -> None:
        # That it is another corpus is said in another message.
        old = self._read_note()
        if old.get("corpus") != self.kind:
            return
        changes = differences({key: old.get(key) for key in details}, details)
        if changes:
            raise UserError(
                f"{self.folder} was made with other settings ({'; '.join(changes)}). Delete it to make it anew, or "
                "keep it and choose another name with --name"
            )

    def through(self, path: str | Path) -> Path:
        """A path below `origins` as one below `roots`; any other is left as it is."""
        # What lies elsewhere, such as a file that a CSV names, has no shorter name.
        for root, origin in zip(self.roots, self.origins, strict=True):
            if Path(path).is_relative_to(origin):
                return root / Path(path).relative_to(origin)
        return Path(path)

    def _read_note(self) -> dict:
        path = self.folder / NOTE
        return read_json(path, f"delete {path} and run stage 0 again")

    def _fingerprint(self) -> str | list[str]:
        """Of the directories; of several parts one for each, since A,B is another corpus than A+B."""
        prints = [fingerprint(part) for part in self.parts]
        return prints[0] if len(prints) == 1 else prints

    def _owner(self, note: dict) -> str:
        kind = str(note.get("corpus"))
        if kind != "directory":
            return kind
        # Where that corpus lies, which is what a person knows; its links may have gone.
        return linked_text(self.folder / "corpus") or kind

    def _folders_of_links(self) -> list[Path]:
        """The folders below that of the data in which the links lie, the outer ones first."""
        folders: set[Path] = set()
        for root in self.roots:
            above = root.relative_to(self.folder).parents
            folders.update(self.folder / name for name in above)
        return sorted(folders - {self.folder})

    def _is_linked(self) -> bool:
        # Only where the links lead counts, so that a corpus that is not mounted now is still known.
        for root, origin in zip(self.roots, self.origins, strict=True):
            if not root.is_symlink() or Path(os.readlink(root)) != origin:
                return False
        return True

    def _link(self) -> None:
        if self._is_linked():
            return
        # What a killed stage 0 has left: a link where a folder of links must be.
        for place in self._folders_of_links():
            if place.is_symlink():
                place.unlink()
        for root, origin in zip(self.roots, self.origins, strict=True):
            root.parent.mkdir(parents=True, exist_ok=True)
            if root.is_dir() and not root.is_symlink():
                raise UserError(
                    f"{root} is in the way of a link to {origin}. Delete {self.folder}, or choose another name with "
                    "--name"
                )
            # A link cannot be replaced in one step, but renamed over.
            temporary = temporary_name(root.parent)
            temporary.symlink_to(origin)
            os.replace(temporary, root)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of stages 0 and 1 that `locate` reads, and --nj."""
    parser.add_argument("--corpus", default="mini", help="mini, download, or a directory")
    parser.add_argument("--name", default="", help="of the folder of data; default: the corpus's")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder for the data")
    parser.add_argument("--nj", type=positive, default=2, help="processes")


def positive(text: str) -> int:
    """A type for argparse: a whole number, 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def locate(
    args: argparse.Namespace,
    accepted: str = "",
    downloaded: str = "",
    pair: bool = False,
    base: Path | None = None,
    mini: bool = True,
    joined: bool = False,
) -> Corpus:
    """The corpus that the options name.

    Args:
        args: of `add_arguments`: corpus, name, out.
        accepted: the forms of a directory, a line each, for messages.
        downloaded: name of the folder for `--corpus download`; "": nothing can be downloaded.
        pair: whether TRAIN_DIR,TEST_DIR is a form.
        base: folder that relative paths are relative to; None: the current one.
        mini: whether the recipe can make a mini corpus.
        joined: whether several corpora may be joined by `+`.

    Raises:
        UserError: the recipe has no such corpus; the directory does not exist and was never used, or its name cannot be
            that of the data.
    """
    # Words that are no directories, and the names of their data.
    words = {}
    if mini:
        words["mini"] = "mini"
    if downloaded:
        words["download"] = downloaded
    if args.corpus == "mini" and not mini:
        raise UserError(f"--corpus: give a directory in one of these forms:\n{accepted}")
    # These lie in the folder of the data itself.
    if args.corpus in words:
        name = _check_name(args.name or words[args.corpus], "--name")
        folder = (args.out / name).resolve()
        return Corpus(args.corpus, name, ((folder / "corpus",),), folder)
    if not args.corpus:
        raise UserError("--corpus is empty: give mini, or a directory")
    for parts in readings(args.corpus, base or Path.cwd(), pair, joined):
        name = args.name or name_of(parts)
        corpus = Corpus("directory", name, parts, (args.out / name).resolve())
        # Once all is mixed, the corpus itself may have gone.
        is_known = (corpus.folder / NOTE).is_file() and corpus._is_linked()
        if is_known:
            break
    _check_name(name, "--name" if args.name else f"--corpus {args.corpus}")
    absent = [origin for origin in corpus.origins if not origin.is_dir()]
    if absent and not is_known:
        forms = "See --help for what it may be"
        if accepted:
            choices = [f"`{word}`" for word in words] + ["one of these forms"]
            forms = f"Give {', or '.join(choices)}:\n{accepted}"
        raise UserError(f"--corpus: {absent[0]} is not a directory. {forms}")
    return corpus


@command
def main(argv: list[str] | None = None) -> None:
    """Print the name of a corpus and where it is, each followed by a NUL; check data/NAME if it exists."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    add_arguments(parser)
    parser.add_argument(
        "--base",
        type=Path,
        help="folder that relative paths are relative to",
    )
    parser.add_argument(
        "--downloaded",
        default="",
        help="name of what --corpus download fetches",
    )
    parser.add_argument(
        "--pair",
        action="store_true",
        help="TRAIN_DIR,TEST_DIR is a form",
    )
    parser.add_argument(
        "--joined",
        action="store_true",
        help="several corpora may be joined by +",
    )
    args = parser.parse_args(argv)
    corpus = locate(
        args, downloaded=args.downloaded, pair=args.pair, base=args.base, joined=args.joined
    )
    corpus.check()
    # Names may hold any other byte, a line feed too.
    for text in (corpus.name, corpus.given):
        sys.stdout.buffer.write(os.fsencode(text) + b"\0")


if __name__ == "__main__":
    main()
