"""Downloads with checksum, progress and resumption: pooch, and what it lacks, going on where a broken one ended."""

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
    folder, name = Path(folder), url.rsplit("/", 1)[-1]
    part = folder / f"{name}.part"
    try:
        return Path(pooch.retrieve(url, sha256, name, folder, downloader=_Resuming(part)))
    except requests.RequestException as error:
        kept = part.stat().st_size if part.exists() else 0
        raise UserError(f"{url}: {error}. The same command goes on after {kept} bytes") from None
    except ValueError as error:  # pooch's, about a checksum
        if "SHA256" not in str(error):
            raise
        raise UserError(
            f"{folder / name}: what came from {url} has another checksum; get it again"
        ) from None


class _Resuming:
    """A downloader for pooch."""

    def __init__(self, part: Path):
        self.part = part

    def __call__(self, url, output_file, _):
        start = self.part.stat().st_size if self.part.exists() else 0
        headers = {"Range": f"bytes={start}-", "Accept-Encoding": "identity"}
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                size = response.headers.get("Content-Range", "*/-1").rsplit("/", 1)[-1]
                whole = int(size) == start
                if not whole:
                    self.part.unlink(missing_ok=True)
                    raise requests.ConnectionError(
                        f"the {start} bytes that are here are not of this file"
                    )
            else:
                response.raise_for_status()
                start = start if response.status_code == requests.codes.partial_content else 0
                self._write(response, start)
        self.part.replace(output_file)

    def _write(self, response, start):
        expected = (
            int(response.headers["Content-Length"])
            if "Content-Length" in response.headers
            else None
        )
        total = None if expected is None else start + expected
        with (
            open(self.part, "ab" if start else "wb") as file,
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
