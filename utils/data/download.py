"""Downloads with checksum, progress and resumption: pooch, and what it lacks, to go on where a broken one ended."""

from pathlib import Path

import pooch
import requests
from tqdm import tqdm

from utils.errors import UserError

CHUNK = 2**14  # bytes; what has come of one when the connection breaks is lost
TIMEOUT = 60  # s without a byte


def fetch(url: str, folder: str | Path, sha256: str) -> Path:
    """Download a file unless it is there already.

    Args:
        url: http or https.
        folder: where the file goes, under its own name.
        sha256: of the whole file, hexadecimal.

    Returns:
        the file, whole and verified. Until then its beginning is kept as `<name>.part`.

    Raises:
        UserError: no connection, a broken one, or a file with another checksum, which is removed.
    """
    folder = Path(folder)
    name = url.rsplit("/", 1)[-1]
    part = folder / f"{name}.part"
    try:
        path = Path(pooch.retrieve(url, sha256, name, folder, downloader=_Resuming(part)))
        part.unlink(missing_ok=True)  # if the server sent the whole file anew
        return path
    except requests.RequestException as error:
        n_bytes = part.stat().st_size if part.exists() else 0
        raise UserError(
            f"{url}: {error}. Run the same command again: it goes on after {n_bytes} bytes"
        ) from None
    except ValueError as error:  # pooch's, about a checksum
        if "SHA256" not in str(error):
            raise
        raise UserError(
            f"{folder / name}: what {url} sent has another checksum, and was deleted. Try again later"
        ) from None


class _Resuming:
    """A downloader for pooch, which compares checksums. Only a whole file replaces what was received before."""

    def __init__(self, part: Path):
        self.part = part

    def __call__(self, url, output_file, _):
        start = self.part.stat().st_size if self.part.exists() else 0
        # Not compressed on the way: then positions would be of something else.
        headers = {"Range": f"bytes={start}-", "Accept-Encoding": "identity"}
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                self._check_size(response, start)
                complete = self.part
            else:
                response.raise_for_status()
                complete = self._receive(response, start)
        complete.replace(output_file)

    def _check_size(self, response, start):
        """The server has nothing after `start`: is that because the file is whole?"""
        size = response.headers.get("Content-Range", "").rpartition("/")[2]
        if not size.isdecimal():
            raise requests.ConnectionError(
                f"the server sends nothing after {start} bytes, and does not say how long the file is"
            )
        if int(size) != start:
            self.part.unlink(missing_ok=True)
            raise requests.ConnectionError(
                f"the {start} bytes received so far are not of this file"
            )

    def _receive(self, response, start):
        """Write what the server sends, and return the file, which is then whole."""
        length = response.headers.get("Content-Length")
        length = None if length is None else int(length)
        if response.status_code == requests.codes.partial_content and start:
            # "bytes BEGIN-END/SIZE"
            begin = response.headers.get("Content-Range", f"bytes {start}-").split("-")[0]
            if begin.split()[-1] != str(start):
                raise requests.ConnectionError(f"the server does not resume after {start} bytes")
            self._write(response, self.part, start, length)
            return self.part
        if start == 0:
            self._write(response, self.part, 0, length)
            return self.part
        # The server, or something before it such as a log-in page, sends a whole file from its beginning.
        if length is not None and length < start:
            raise requests.ConnectionError(
                f"the server sent a file of {length} bytes, fewer than the {start} received so far; does the network "
                "have a log-in page?"
            )
        other = self.part.with_name(f"{self.part.name}.anew")
        try:
            self._write(response, other, 0, length)
        except BaseException:
            other.unlink(missing_ok=True)
            raise
        return other

    def _write(self, response, path, start, length):
        total = None if length is None else start + length
        # None: the server does not say, and a bar without an end is shown.
        mode = "ab" if start else "wb"
        with (
            open(path, mode) as file,
            tqdm(
                total=total,
                initial=start,
                unit="B",
                unit_scale=True,
                desc=self.part.stem,
                disable=None,
            ) as bar,
        ):
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            if total is not None and file.tell() != total:
                raise requests.ConnectionError(
                    f"the connection ended after {file.tell()} of {total} bytes"
                )
